//! Bytes as JSON: a string where they are UTF-8, else an object with their base64.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Name;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Raw { b64: String },
}

/// For `serde(with)`.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => serializer.serialize_str(text),
        Err(_) => Text::Raw { b64: BASE64_STANDARD.encode(bytes) }.serialize(serializer),
    }
}

/// For `serde(with)`.
///
/// # Errors
/// The deserializer's, and bad base64.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<[u8]>, D::Error> {
    match Text::deserialize(deserializer)? {
        Text::Plain(text) => Ok(text.into_bytes().into()),
        Text::Raw { b64 } => BASE64_STANDARD.decode(b64).map(Into::into).map_err(serde::de::Error::custom),
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(self.as_bytes(), serializer)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Name::new(&deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
