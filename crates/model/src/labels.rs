//! What workers say of where they are and whom they serve, such as `zone=a` or `pool=large`, and what pipes ask for.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names with one value each; both are 1 to 63 bytes, printable, without `=`, `,` and white space at the ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<String, String>);

/// What cannot be a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a label; expected name=value, both 1 to 63 bytes without '=', ',' and control characters"
)]
pub struct InvalidLabel(String);

impl Labels {
    /// Checks and takes them; of several with one name the last stands.
    ///
    /// # Errors
    /// The first that is none.
    pub fn new(given: impl IntoIterator<Item = (String, String)>) -> Result<Self, InvalidLabel> {
        let checked = given.into_iter().map(|(name, value)| {
            if valid(&name) && valid(&value) {
                Ok((name, value))
            } else {
                Err(InvalidLabel(format!("{name}={value}")))
            }
        });
        Ok(Self(checked.collect::<Result<_, _>>()?))
    }

    /// Whether every one that is asked for is here with that value.
    pub fn satisfy(&self, selector: &Self) -> bool {
        selector.0.iter().all(|(name, value)| self.0.get(name) == Some(value))
    }

    /// Values by name.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

fn valid(text: &str) -> bool {
    let odd = |character: char| character.is_control() || matches!(character, '=' | ',');
    (1..=63).contains(&text.len()) && text.trim() == text && !text.chars().any(odd)
}

/// `zone=a,pool=large`; nothing is no label.
impl FromStr for Labels {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').ok_or_else(|| InvalidLabel(pair.to_owned()))?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        });
        Self::new(pairs.collect::<Result<Vec<_>, InvalidLabel>>()?)
    }
}

/// As it is read.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{name}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Labels;

    fn labels(text: &str) -> Labels {
        text.parse().expect("labels")
    }

    #[test]
    fn a_selector_asks_for_all_of_its_labels() {
        let worker = labels("zone=a, pool=large");
        assert_eq!(worker.to_string(), "pool=large,zone=a");
        for fits in ["", "zone=a", "pool=large", "zone=a,pool=large"] {
            assert!(worker.satisfy(&labels(fits)), "{fits}");
        }
        for other in ["zone=b", "zone=a,pool=small", "disk=fast", "Zone=a"] {
            assert!(!worker.satisfy(&labels(other)), "{other}");
        }
        assert!(!Labels::default().satisfy(&labels("zone=a")));
    }

    #[test]
    fn what_is_no_label_is_refused() {
        for text in ["zone", "zone=", "=a", "zone=a=b", &format!("zone={}", "a".repeat(64)), "zo\u{7}ne=a"] {
            assert!(text.parse::<Labels>().is_err(), "{text}");
        }
    }
}
