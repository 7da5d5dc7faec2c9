//! Names as types: what holds one has been checked against the rule. Pure: no clock, no I/O.
//!
//! The rule itself, 1 to 128 bytes of `A-Z a-z 0-9 . _ -` not beginning with `.` or `-`, is
//! [`denizen_image::names`]. It makes a name safe as a path component and in a URL, so code that holds one of
//! these types need not check again.

use std::fmt;
use std::str::FromStr;

pub use denizen_image::names::{MAX_NAME_BYTES, NameError, check};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Box<str>);

        impl $type {
            /// Takes a text that obeys the rule.
            ///
            /// # Errors
            /// The rule that it breaks.
            pub fn new(text: &str) -> Result<Self, NameError> {
                denizen_image::names::check(text)?;
                Ok(Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// The name of an application.
    AppName
);
name!(
    /// The name of a process within its application.
    ProcessName
);
name!(
    /// The name of a function within its image.
    FunctionName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_checked_texts_become_names() {
        assert_eq!(AppName::new("counter").unwrap().as_str(), "counter");
        assert!(AppName::new("a/b").is_err());
        assert!("..".parse::<ProcessName>().is_err());
        assert!(serde_json::from_str::<FunctionName>("\"a\\u0000\"").is_err());
        let name: FunctionName = serde_json::from_str("\"f\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"f\"");
    }
}
