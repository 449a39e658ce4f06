//! What `meta.json` looks like: one object, with the SHA-256 of all the rest of it, and the formats of what lies beside it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Meta;
use crate::hash::{ContentHash, HashKind};
use crate::store::journal;

/// The field with the checksum.
const SUM: &str = "sha256";
/// What this code makes of spool and cache.
const SPOOL: u32 = 1;
const CACHE: u32 = 2;

/// The formats of what a state directory holds, each a number that grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formats {
    /// Of the journal.
    pub journal: u32,
    /// Of the spool.
    pub spool: u32,
    /// Of the cache.
    pub cache: u32,
    /// Of what is not known here.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Default for Formats {
    fn default() -> Self {
        Self { journal: journal::FORMAT, spool: SPOOL, cache: CACHE, rest: Map::new() }
    }
}

impl Formats {
    /// What of it this code does not know, in words.
    pub(super) fn unknown(&self) -> Option<String> {
        let known = Self::default();
        let parts = [
            ("journal", self.journal, known.journal),
            ("spool", self.spool, known.spool),
            ("cache", self.cache, known.cache),
        ];
        let newer = parts.into_iter().find(|(_, found, known)| found > known);
        let newer = newer
            .map(|(what, found, known)| format!("its {what} has format {found}, and this one reads up to {known}"));
        newer.or_else(|| self.rest.keys().next().map(|what| format!("it has a {what}")))
    }
}

/// The checksum of an object: of its fields in the order of their names, without white space, without this one.
fn sum_of(object: &Map<String, Value>) -> serde_json::Result<String> {
    let mut rest = object.clone();
    rest.remove(SUM);
    Ok(ContentHash::of(HashKind::Sha256, &serde_json::to_vec(&rest)?).to_string())
}

pub(super) fn to_text(meta: &Meta) -> serde_json::Result<Vec<u8>> {
    let mut value = serde_json::to_value(meta)?;
    if let Some(object) = value.as_object_mut() {
        object.insert(SUM.into(), sum_of(object)?.into());
    }
    let mut text = serde_json::to_vec_pretty(&value)?;
    text.push(b'\n');
    Ok(text)
}

/// What a text says, or why it is damaged. One that early versions wrote has no checksum.
pub(super) fn from_text(text: &[u8]) -> Result<Meta, String> {
    let mut object: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let sum = sum_of(&object).map_err(|error| error.to_string())?;
    match object.remove(SUM) {
        Some(Value::String(found)) if found == sum => {}
        None if ["server", "repo", "workspace", "subdir", "branch", "mountpoint", "pid", "version", "access"]
            .iter()
            .filter(|name| object.contains_key(**name))
            .count()
            == object.len() => {}
        _ => return Err("it is not as it was written".into()),
    }
    serde_json::from_value(object.into()).map_err(|error| error.to_string())
}
