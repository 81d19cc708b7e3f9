use super::*;
use crate::spec::kubernetes::{PullPolicy, TaintEffect, Toleration};

const WORK: &str = "[command]\nargv = ['a']\n[workers]\nfleet = 'kubernetes'\n";
const TABLE: &str = "[kubernetes]\nimage = 'i:1'\nclaim = 'c'\n";

fn spec(more: &str) -> Result<crate::spec::kubernetes::KubernetesSpec, SpecError> {
    Ok(parse(&format!("{WORK}{TABLE}{more}"))?.kubernetes.unwrap())
}

#[test]
fn an_image_and_a_claim_are_enough() {
    let spec = spec("").unwrap();
    assert_eq!((spec.image.as_str(), spec.claim.as_str(), spec.program.as_str()), ("i:1", "c", "forebay"));
    assert_eq!((spec.grace, spec.ttl), (Duration::from_secs(30), Duration::from_secs(600)));
    assert_eq!(spec.gpu_resource, "nvidia.com/gpu");
    assert_eq!(spec.mount(Path::new("/efs/v")), Path::new("/efs/v"));
}

#[test]
fn all_that_pods_can_be_is_read() {
    let spec = spec(
        "kubeconfig = 'k/config'\ncontext = 'a'\nnamespace = 'batch'\npull_policy = 'Never'\npull_secrets = ['s']\n\
         sub_path = 'a/b'\nmount = '/mnt'\nservice_account = 'w'\nuser = 7\ngroup = 8\nnode_selector = { pool = 'x' }\n\
         priority_class = 'low'\ngpu_resource = 'amd.com/gpu'\nlabels = { team = 'x' }\nttl = '0s'\ngrace = '1m'\n\
         annotations = { 'example.org/a' = 'any text' }\n\
         tolerations = [{ key = 'spot', value = 'yes', effect = 'NoExecute', time = '5m' }, {}]\n",
    )
    .unwrap();
    assert_eq!(spec.kubeconfig.as_deref(), Some(Path::new("/base/k/config")));
    assert_eq!((spec.user, spec.group, spec.pull_policy), (Some(7), Some(8), Some(PullPolicy::Never)));
    let spot = Toleration {
        key: Some("spot".to_owned()),
        value: Some("yes".to_owned()),
        effect: Some(TaintEffect::NoExecute),
        time: Some(Duration::from_secs(300)),
    };
    assert_eq!(spec.tolerations, [spot, Toleration { key: None, value: None, effect: None, time: None }]);
    assert_eq!(spec.mount(Path::new("/efs/v")), Path::new("/mnt"));
}

#[test]
fn what_pods_cannot_be_is_told() {
    let wrong = [
        ("user = 0", "do not run as root"),
        ("grace = '5s'", "needs longer"),
        ("mount = 'mnt'", "cannot be mounted"),
        ("mount = '/a/../b'", "cannot be mounted"),
        ("sub_path = '../x'", "no path below"),
        ("namespace = 'A_b'", "no name in Kubernetes"),
        ("service_account = 'a/b'", "no name in Kubernetes"),
        ("pull_policy = 'always'", "no pull policy"),
        ("labels = { 'app.kubernetes.io/name' = 'x' }", "not the job's to set"),
        ("labels = { team = 'a b' }", "no value of a label"),
        ("annotations = { 'a b' = 'x' }", "no key of a label"),
        ("gpu_resource = 'gpu'", "not what a device is called"),
        ("tolerations = [{ value = 'x' }]", "which key"),
        ("tolerations = [{ key = 'x', time = '1m' }]", "only the effect NoExecute"),
        ("tolerations = [{ key = 'x', effect = 'no' }]", "no taint has the effect"),
        ("imagee = 'x'", "unknown key"),
    ];
    for (more, told) in wrong {
        let error = spec(more).unwrap_err();
        assert!(error.message.contains(told), "{more}: {}", error.message);
    }
    let error = parse(&format!("{WORK}[kubernetes]\nimage = 'i'\n")).unwrap_err();
    assert!(error.message.contains("no claim"), "{}", error.message);
    assert!(parse(WORK).unwrap_err().message.contains("[kubernetes] is missing"));
    let other = format!("[command]\nargv = ['a']\n{TABLE}");
    assert!(parse(&other).unwrap_err().message.contains("means nothing to this fleet"));
}
