//! `[kubernetes]`

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::Spanned;

use super::{
    SpecError,
    raw::{RawKubernetes, RawToleration},
};
use crate::spec::{
    FleetKind,
    kubernetes::{KubernetesSpec, PullPolicy, TaintEffect, Toleration},
    size,
};

/// What a worker needs to end: its programs have 10 s of it.
const LEAST_GRACE: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(30);
/// How long a Job stays that has ended: long enough to read its pods' logs.
const TTL: Duration = Duration::from_secs(600);

/// Labels and annotations that begin so are forebay's, or the cluster's.
const RESERVED: [&str; 4] = ["app.kubernetes.io/", "batch.kubernetes.io/", "forebay/", "job-name"];

pub(super) fn kubernetes(
    raw: Option<Spanned<RawKubernetes>>,
    (fleet, place): (FleetKind, Option<Range<usize>>),
    base: &Path,
) -> Result<Option<KubernetesSpec>, SpecError> {
    match (raw, fleet) {
        (Some(raw), FleetKind::Kubernetes) => table(raw.into_inner(), base).map(Some),
        (Some(raw), _) => {
            let error = SpecError::at(&raw, "[kubernetes] means nothing to this fleet");
            Err(error.help("write fleet = \"kubernetes\" under [workers], or remove it"))
        }
        (None, FleetKind::Kubernetes) => {
            let message = "the fleet is kubernetes, and the table [kubernetes] is missing".to_owned();
            Err(SpecError { message, help: Some("add it: docs/kubernetes.md has one".to_owned()), span: place })
        }
        (None, _) => Ok(None),
    }
}

fn table(raw: RawKubernetes, base: &Path) -> Result<KubernetesSpec, SpecError> {
    let missing = |key: &str, what: &str| SpecError {
        message: format!("[kubernetes] has no {key}"),
        help: Some(format!("add {key}: {what}")),
        span: None,
    };
    let image = raw.image.ok_or_else(|| missing("image", "what the workers' container is made of"))?;
    let claim = raw.claim.ok_or_else(|| missing("claim", "the ReadWriteMany claim that holds the volume"))?;
    let grace = duration(raw.grace.as_ref(), GRACE)?;
    if let Some(place) = raw.grace.as_ref().filter(|_| grace < LEAST_GRACE) {
        let error = SpecError::at(place, "a worker needs longer than this to end its programs");
        return Err(error.help(format!("give it {} s, or more", LEAST_GRACE.as_secs())));
    }
    if let Some(place) = raw.user.as_ref().filter(|user| *user.get_ref() == 0) {
        return Err(SpecError::at(place, "pods of workers do not run as root")
            .help("name the user to whom the volume belongs, and run the coordinator as that one"));
    }
    let gpu_resource = match &raw.gpu_resource {
        None => "nvidia.com/gpu".to_owned(),
        Some(name) if name.get_ref().contains('/') => qualified(name)?,
        Some(name) => {
            let error = SpecError::at(name, format!("`{}` is not what a device is called", name.get_ref()));
            return Err(error.help("write it with its vendor: \"amd.com/gpu\""));
        }
    };
    Ok(KubernetesSpec {
        kubeconfig: raw.kubeconfig.map(|path| base.join(path)),
        context: raw.context,
        namespace: raw.namespace.as_ref().map(label).transpose()?,
        image: filled(&image, "image")?,
        program: raw.program.as_ref().map_or(Ok("forebay".to_owned()), |program| filled(program, "program"))?,
        pull_policy: raw.pull_policy.as_ref().map(pull_policy).transpose()?,
        pull_secrets: raw.pull_secrets.iter().map(object).collect::<Result<_, _>>()?,
        claim: object(&claim)?,
        sub_path: raw.sub_path.as_ref().map(sub_path).transpose()?,
        mount: raw.mount.as_ref().map(mount).transpose()?,
        service_account: raw.service_account.as_ref().map(object).transpose()?,
        user: raw.user.map(Spanned::into_inner),
        group: raw.group,
        node_selector: labels(raw.node_selector, &[])?,
        tolerations: raw.tolerations.iter().map(toleration).collect::<Result<_, _>>()?,
        priority_class: raw.priority_class.as_ref().map(object).transpose()?,
        gpu_resource,
        labels: labels(raw.labels, &RESERVED)?,
        annotations: annotations(raw.annotations)?,
        grace,
        ttl: duration(raw.ttl.as_ref(), TTL)?,
    })
}

fn duration(text: Option<&Spanned<String>>, default: Duration) -> Result<Duration, SpecError> {
    let Some(text) = text else { return Ok(default) };
    size::duration(text.get_ref()).map_err(|message| SpecError::at(text, message))
}

fn filled(text: &Spanned<String>, key: &str) -> Result<String, SpecError> {
    match text.get_ref().trim() {
        "" => Err(SpecError::at(text, format!("the {key} is empty"))),
        _ => Ok(text.get_ref().clone()),
    }
}

/// One part of a name in the cluster: of lower-case letters, digits and hyphens.
fn is_label(part: &str) -> bool {
    (1..=63).contains(&part.len())
        && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !part.starts_with('-')
        && !part.ends_with('-')
}

fn label(text: &Spanned<String>) -> Result<String, SpecError> {
    match is_label(text.get_ref()) {
        true => Ok(text.get_ref().clone()),
        false => Err(SpecError::at(text, format!("`{}` is no name in Kubernetes", text.get_ref()))
            .help("it takes 1 to 63 lower-case letters, digits and hyphens")),
    }
}

/// The name of an object of the cluster.
pub(super) fn object(text: &Spanned<String>) -> Result<String, SpecError> {
    let name = text.get_ref();
    match name.len() <= 253 && name.split('.').all(is_label) {
        true => Ok(name.clone()),
        false => Err(SpecError::at(text, format!("`{name}` is no name in Kubernetes"))
            .help("it takes lower-case letters, digits, hyphens and points")),
    }
}

/// A key of a label: a name, and before a slash whose it is.
fn is_qualified(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_label))
        && is_value(name)
        && !name.is_empty()
}

/// A value of a label.
fn is_value(value: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    value.len() <= 63
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && ends(value.as_bytes().first())
        && ends(value.as_bytes().last())
}

fn qualified(text: &Spanned<String>) -> Result<String, SpecError> {
    match is_qualified(text.get_ref()) {
        true => Ok(text.get_ref().clone()),
        false => Err(SpecError::at(text, format!("`{}` is no name in Kubernetes", text.get_ref()))),
    }
}

fn own(key: &str, place: &Spanned<String>, reserved: &[&str]) -> Result<(), SpecError> {
    if !is_qualified(key) {
        return Err(SpecError::at(place, format!("`{key}` is no key of a label or an annotation"))
            .help("write it like \"team\" or \"example.org/team\""));
    }
    match reserved.iter().any(|of| key.starts_with(of)) {
        true => Err(SpecError::at(place, format!("`{key}` is not the job's to set")).help("use another key")),
        false => Ok(()),
    }
}

fn labels(raw: BTreeMap<String, Spanned<String>>, reserved: &[&str]) -> Result<BTreeMap<String, String>, SpecError> {
    let one = |(key, value): (String, Spanned<String>)| {
        own(&key, &value, reserved)?;
        match is_value(value.get_ref()) {
            true => Ok((key, value.into_inner())),
            false => Err(SpecError::at(&value, format!("`{}` is no value of a label", value.get_ref()))
                .help("it takes 63 letters, digits, `.`, `_` and `-` at most, with a letter or a digit at both ends")),
        }
    };
    raw.into_iter().map(one).collect()
}

fn annotations(raw: BTreeMap<String, Spanned<String>>) -> Result<BTreeMap<String, String>, SpecError> {
    let one = |(key, value): (String, Spanned<String>)| {
        own(&key, &value, &RESERVED)?;
        Ok((key, value.into_inner()))
    };
    raw.into_iter().map(one).collect()
}

fn pull_policy(text: &Spanned<String>) -> Result<PullPolicy, SpecError> {
    let all = [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never];
    all.into_iter().find(|policy| policy.name() == text.get_ref()).ok_or_else(|| {
        SpecError::at(text, format!("there is no pull policy `{}`", text.get_ref()))
            .help("use Always, IfNotPresent or Never")
    })
}

fn sub_path(text: &Spanned<String>) -> Result<String, SpecError> {
    let path = text.get_ref();
    match path.split('/').all(|part| !matches!(part, "" | "." | "..")) {
        true => Ok(path.clone()),
        false => Err(SpecError::at(text, format!("`{path}` is no path below the claim's root"))
            .help("write it like \"teams/a\", without `..` and a slash at its ends")),
    }
}

fn mount(text: &Spanned<String>) -> Result<PathBuf, SpecError> {
    let path = text.get_ref();
    match path.starts_with('/') && path.len() > 1 && !path.contains([':', '$']) && !path.split('/').any(|p| p == "..") {
        true => Ok(path.into()),
        false => Err(SpecError::at(text, format!("the volume cannot be mounted at `{path}`"))
            .help("write an absolute path, without `:` and `$`")),
    }
}

fn toleration(raw: &Spanned<RawToleration>) -> Result<Toleration, SpecError> {
    let RawToleration { key, value, effect, time } = raw.get_ref();
    if let (None, Some(place)) = (key, value) {
        return Err(SpecError::at(place, "a value of which key is not said").help("add key"));
    }
    let all = [TaintEffect::NoSchedule, TaintEffect::PreferNoSchedule, TaintEffect::NoExecute];
    let effect = effect.as_ref().map(|text| {
        all.into_iter().find(|effect| effect.name() == text.get_ref()).ok_or_else(|| {
            SpecError::at(text, format!("no taint has the effect `{}`", text.get_ref()))
                .help("use NoSchedule, PreferNoSchedule or NoExecute")
        })
    });
    let effect = effect.transpose()?;
    if let Some(place) = time.as_ref().filter(|_| effect != Some(TaintEffect::NoExecute)) {
        return Err(SpecError::at(place, "only the effect NoExecute is tolerated for a time")
            .help("remove it, or add effect = \"NoExecute\""));
    }
    Ok(Toleration {
        key: key.as_ref().map(qualified).transpose()?,
        value: value.as_ref().map(|value| value.get_ref().clone()),
        effect,
        time: time.as_ref().map(|text| duration(Some(text), Duration::ZERO)).transpose()?,
    })
}
