//! `[params]`, `--set`, and `${params.name}`.

use std::{collections::BTreeMap, ops::Range};

use toml::Spanned;

use super::SpecError;

/// The parameters, with what the command line says instead.
pub(super) fn params(
    raw: BTreeMap<String, Spanned<toml::Value>>,
    overrides: &[(String, String)],
) -> Result<BTreeMap<String, String>, SpecError> {
    let mut params: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in raw {
        let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.is_empty();
        if !fits {
            let error = SpecError::at(&value, format!("the parameter `{name}` is no name of an environment variable"));
            return Err(error.help("use letters, digits and _"));
        }
        if let Some(other) = params.keys().find(|other| other.eq_ignore_ascii_case(&name)) {
            let message = format!("the parameters `{other}` and `{name}` differ in case alone");
            let variable = name.to_ascii_uppercase();
            return Err(SpecError::at(&value, message).help(format!("both would be FOREBAY_PARAM_{variable}")));
        }
        let text = match value.get_ref() {
            toml::Value::String(text) if text.contains('\0') => {
                return Err(SpecError::at(&value, format!("the parameter `{name}` holds a NUL")));
            }
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(_) | toml::Value::Table(_) => {
                return Err(SpecError::at(&value, format!("the parameter `{name}` is neither text nor number")));
            }
            plain => plain.to_string(),
        };
        params.insert(name, text);
    }
    for (name, value) in overrides {
        match params.get_mut(name) {
            Some(held) => held.clone_from(value),
            None => {
                let message = format!("--set {name}: the job has no such parameter");
                let known: Vec<_> = params.keys().map(String::as_str).collect();
                let help = match known.is_empty() {
                    true => "it has no [params]".to_owned(),
                    false => format!("it has {}", known.join(", ")),
                };
                return Err(SpecError { message, help: Some(help), span: None });
            }
        }
    }
    Ok(params)
}

/// Replaces every `${params.name}`. What a parameter holds is not looked at again.
pub(super) fn filled(text: &str, place: &Range<usize>, params: &BTreeMap<String, String>) -> Result<String, SpecError> {
    let wrong = |message, help| SpecError { message, help: Some(help), span: Some(place.clone()) };
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${params.") {
        let Some((name, after)) = after.split_once('}') else {
            return Err(wrong("`${params.` is not closed".to_owned(), "write ${params.name}".to_owned()));
        };
        let Some(value) = params.get(name) else {
            return Err(wrong(format!("there is no parameter `{name}`"), format!("add `{name} = …` to [params]")));
        };
        out.push_str(before);
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_parameter_holds_is_not_filled_in_again() {
        let params = BTreeMap::from([("a".to_owned(), "${params.b}".to_owned()), ("b".to_owned(), "2".to_owned())]);
        assert_eq!(filled("x${params.a}y${params.b}$z", &(0..1), &params).unwrap(), "x${params.b}y2$z");
    }
}
