//! Settings of a module: what it declares, what the policy gives, what it gets.
//!
//! A module declares its settings in the custom section [`SECTION`]: a JSON object with an entry a setting, for instance
//! `{"batch": {"type": "integer", "default": 32, "doc": "rows in a batch"}}`. Types are `boolean`, `integer`, `number` and
//! `text`; `choices` lists the texts that are allowed; a setting without a default must be given by the policy.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

/// Name of the custom section.
pub const SECTION: &str = "cloister.settings";
/// Bytes of the section at most.
pub const MAX_SECTION_BYTES: usize = 64 << 10;
/// Settings of a module at most.
pub const MAX_SETTINGS: usize = 256;
/// Bytes of a text at most.
pub const MAX_TEXT_BYTES: usize = 4096;

/// A setting's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SettingValue {
    /// True or false.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Any finite number.
    Number(f64),
    /// A text.
    Text(String),
    /// A text that nobody else is to see; a module gets it as any other text.
    Secret(SecretText),
}

/// A secret text: it shows in no `Debug`, and is wiped when it goes. As data it is `{"secret": TEXT}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretText {
    secret: String,
}

impl SecretText {
    /// Keeps a text secret.
    pub fn new(text: &str) -> Self {
        Self {
            secret: text.to_owned(),
        }
    }

    /// The text, to be used and not to be written down.
    pub fn expose(&self) -> &str {
        &self.secret
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value:?}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Secret(_) => f.write_str("a secret"),
        }
    }
}

/// A setting's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SettingType {
    /// True or false.
    Boolean,
    /// A whole number.
    Integer,
    /// A number; a whole one will do.
    Number,
    /// A text.
    Text,
}

impl fmt::Display for SettingType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Text => "text",
        })
    }
}

/// A setting as its module declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingDeclaration {
    /// Its type.
    #[serde(rename = "type")]
    pub ty: SettingType,
    /// Its value where the policy gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<SettingValue>,
    /// The texts that it may be; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// What it does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub doc: String,
}

/// What is wrong with a declaration or with the given values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// The section cannot be read.
    #[error("the module's settings section cannot be read: {0}")]
    Declaration(String),
    /// The policy gives a setting that the module does not declare.
    #[error("the module has no setting `{name}`{}", nearest.as_ref().map_or(String::new(), |near| format!("; did you mean `{near}`?")))]
    Unknown {
        /// The setting.
        name: String,
        /// The declared one with the nearest name.
        nearest: Option<String>,
    },
    /// The policy gives a value of another type, or none of the choices.
    #[error("setting `{name}`: seen {seen}, wanted {wanted}")]
    Value {
        /// The setting.
        name: String,
        /// What was given.
        seen: String,
        /// What the module declares.
        wanted: String,
    },
    /// A setting without a default is not given.
    #[error("setting `{name}` ({ty}) has no default: give it in the policy's `settings`")]
    Missing {
        /// The setting.
        name: String,
        /// Its type.
        ty: SettingType,
    },
}

/// Reads a declaration out of the custom section's bytes.
///
/// # Errors
/// The section is too large, is no JSON of the shape above, or a default does not fit its own type.
pub fn parse(section: &[u8]) -> Result<BTreeMap<String, SettingDeclaration>, SettingError> {
    if section.len() > MAX_SECTION_BYTES {
        let message = format!("seen {} bytes, wanted at most {MAX_SECTION_BYTES}", section.len());
        return Err(SettingError::Declaration(message));
    }
    let declared: BTreeMap<String, SettingDeclaration> =
        serde_json::from_slice(section).map_err(|error| SettingError::Declaration(error.to_string()))?;
    if declared.len() > MAX_SETTINGS {
        let message = format!("seen {} settings, wanted at most {MAX_SETTINGS}", declared.len());
        return Err(SettingError::Declaration(message));
    }
    for (name, declaration) in &declared {
        if let Some(default) = &declaration.default {
            typed(name, declaration, default)?;
        }
    }
    Ok(declared)
}

/// The values that a module gets: those given, checked against the declaration, and the defaults of the others.
///
/// # Errors
/// A value is unknown, ill-typed or missing.
pub fn resolve(
    declared: &BTreeMap<String, SettingDeclaration>,
    given: &BTreeMap<String, SettingValue>,
) -> Result<BTreeMap<String, SettingValue>, SettingError> {
    if let Some(name) = given.keys().find(|name| !declared.contains_key(*name)) {
        let nearest = declared.keys().map(|known| (strsim::jaro_winkler(name, known), known));
        let nearest = nearest
            .filter(|(likeness, _)| *likeness > 0.7)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        return Err(SettingError::Unknown {
            name: name.clone(),
            nearest: nearest.map(|(_, known)| known.clone()),
        });
    }
    let mut resolved = BTreeMap::new();
    for (name, declaration) in declared {
        let value = match (given.get(name), &declaration.default) {
            (Some(value), _) | (None, Some(value)) => typed(name, declaration, value)?,
            (None, None) => {
                return Err(SettingError::Missing {
                    name: name.clone(),
                    ty: declaration.ty,
                });
            }
        };
        resolved.insert(name.clone(), value);
    }
    Ok(resolved)
}

/// `value` as the declared type; whole numbers serve as numbers.
fn typed(name: &str, declaration: &SettingDeclaration, value: &SettingValue) -> Result<SettingValue, SettingError> {
    let fitting = match (declaration.ty, value) {
        (SettingType::Boolean, SettingValue::Boolean(_)) | (SettingType::Integer, SettingValue::Integer(_)) => {
            Some(value.clone())
        }
        (SettingType::Number, SettingValue::Number(number)) if number.is_finite() => Some(value.clone()),
        // Beyond 2^53 an f64 would round, silently.
        (SettingType::Number, SettingValue::Integer(whole)) if whole.unsigned_abs() <= 1 << 53 => {
            Some(SettingValue::Number(*whole as f64))
        }
        (SettingType::Text, SettingValue::Text(text)) => {
            let chosen = declaration.choices.is_empty() || declaration.choices.contains(text);
            (chosen && text.len() <= MAX_TEXT_BYTES).then(|| value.clone())
        }
        // A choice would tell others what it can be.
        (SettingType::Text, SettingValue::Secret(secret)) => {
            let fits = declaration.choices.is_empty() && secret.expose().len() <= MAX_TEXT_BYTES;
            fits.then(|| value.clone())
        }
        _ => None,
    };
    fitting.ok_or_else(|| {
        let wanted = if declaration.choices.is_empty() {
            declaration.ty.to_string()
        } else {
            format!("one of \"{}\"", declaration.choices.join("\", \""))
        };
        let seen = value.to_string().chars().take(128).collect();
        SettingError::Value {
            name: name.to_owned(),
            seen,
            wanted,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_text_to_the_module_and_shows_nowhere_else() {
        let declared = parse(
            br#"{"token": {"type": "text"}, "mode": {"type": "text", "choices": ["fast"]}, "n": {"type": "integer"}}"#,
        );
        let declared = declared.unwrap();
        let secret = SettingValue::Secret(SecretText::new("s3cret"));
        let only = |name: &str| BTreeMap::from([(name.to_owned(), declared[name].clone())]);
        let resolved = resolve(&only("token"), &given(&[("token", secret.clone())])).unwrap();
        assert_eq!(resolved["token"], secret);
        for name in ["mode", "n"] {
            let error = resolve(&only(name), &given(&[(name, secret.clone())])).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
        let long = SettingValue::Secret(SecretText::new(&"x".repeat(MAX_TEXT_BYTES + 1)));
        assert!(resolve(&only("token"), &given(&[("token", long)])).is_err());
        assert!(!format!("{resolved:?} {secret}").contains("s3cret"));
        // It stays one on its way to a runner.
        let text = serde_json::to_string(&secret).unwrap();
        assert_eq!(serde_json::from_str::<SettingValue>(&text).unwrap(), secret);
    }

    fn declared() -> BTreeMap<String, SettingDeclaration> {
        parse(
            br#"{"batch": {"type": "integer", "default": 32, "doc": "rows"},
                 "learning_rate": {"type": "number"},
                 "schedule": {"type": "text", "default": "constant", "choices": ["constant", "step"]}}"#,
        )
        .unwrap()
    }

    fn given(values: &[(&str, SettingValue)]) -> BTreeMap<String, SettingValue> {
        values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect()
    }

    #[test]
    fn defaults_fill_in_and_whole_numbers_are_numbers() {
        let resolved = resolve(&declared(), &given(&[("learning_rate", SettingValue::Integer(1))])).unwrap();
        assert_eq!(resolved["batch"], SettingValue::Integer(32));
        assert_eq!(resolved["learning_rate"], SettingValue::Number(1.0));
    }

    #[test]
    fn wrong_settings_say_what_was_wanted() {
        let rate = ("learning_rate", SettingValue::Number(0.1));
        let error = |values: &[(&str, SettingValue)]| resolve(&declared(), &given(values)).unwrap_err().to_string();
        assert!(error(&[]).contains("`learning_rate` (number) has no default"));
        assert!(error(&[("lerning_rate", SettingValue::Integer(1))]).contains("did you mean `learning_rate`?"));
        let text = error(&[rate.clone(), ("batch", SettingValue::Number(0.5))]);
        assert_eq!(text, "setting `batch`: seen 0.5, wanted integer");
        let text = error(&[rate, ("schedule", SettingValue::Text("fast".into()))]);
        assert_eq!(
            text,
            "setting `schedule`: seen \"fast\", wanted one of \"constant\", \"step\""
        );
        assert!(error(&[("learning_rate", SettingValue::Number(f64::NAN))]).contains("wanted number"));
    }

    #[test]
    fn broken_declarations_are_refused() {
        for section in [
            &b"[]"[..],
            b"{",
            br#"{"a": {"type": "float"}}"#,
            br#"{"a": {"type": "integer", "default": "x"}}"#,
            br#"{"a": {"type": "integer", "min": 3}}"#,
        ] {
            assert!(parse(section).is_err(), "{}", String::from_utf8_lossy(section));
        }
        assert!(parse(&vec![b' '; MAX_SECTION_BYTES + 1]).is_err());
    }
}
