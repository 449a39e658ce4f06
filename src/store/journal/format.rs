//! What the record looks like on the disk: the header of a segment, and frames. `docs/FORMAT.md` has the grammar.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Change;
use crate::namespace::Ino;
use crate::path::{Name, RepoPath};

/// Room asked of the filesystem at a time, ahead of the end, so that a full disk is met before the change is made.
pub(super) const ROOM_BYTES: u64 = 8 << 20;
/// What is kept back for removals and confirmations, which must work on a full disk.
pub(super) const RESERVE_BYTES: u64 = 2 << 20;
/// The least room that is worth asking for.
pub(super) const LEAST_ROOM_BYTES: u64 = 64 << 10;

/// What this code writes. It reads this and all before it, and refuses what is newer.
pub const FORMAT: u32 = 2;
/// Frames of this format have neither a number nor the sum of the one before.
pub(super) const UNCHAINED: u32 = 1;
/// Features that a segment may need of its reader, by the names that its header gives them. None yet.
const FEATURES: [&str; 0] = [];
/// A field whose name begins with this must not be passed over by a reader that does not know it.
const REQUIRED: char = '!';

/// Hex digits of a checksum: 128 bits of SHA-256.
const SUM_DIGITS: usize = 32;
/// Hex digits of it that the next frame repeats.
const LINK_DIGITS: usize = 16;

/// No frame and no segment has a larger number: a million a second for a hundred thousand years. Larger ones are forged, and
/// nobody has to count on from them.
pub(super) const LAST_NUMBER: u64 = 1 << 62;

/// A frame's checksum, in hex digits.
pub(super) type Sum = [u8; SUM_DIGITS];
/// What a frame has of the one before: the first digits of its checksum.
pub(super) type Link = [u8; LINK_DIGITS];

/// Where a record begins: nothing comes before.
pub(super) const NO_SUM: Sum = [b'0'; SUM_DIGITS];

/// What the next frame has of this one.
pub(super) fn link_of(sum: &Sum) -> Link {
    sum.first_chunk().copied().unwrap_or([b'0'; LINK_DIGITS])
}

/// The first line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// The format.
    pub oxenfs_journal: u32,
    /// The segment's number, which its name has too.
    #[serde(default)]
    pub segment: u64,
    /// The number of its first frame.
    #[serde(default)]
    pub first: u64,
    /// What the frame before that has for a checksum, as frames repeat it.
    #[serde(default)]
    pub link: String,
    /// The boot of the machine in which the segment was made.
    #[serde(default)]
    pub boot: String,
    /// Features without which it cannot be read.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Made by `oxenfs repair`: the segments before it are kept, not removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repaired: bool,
    /// What the record says of the server was not compared with it since a repair.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unverified: bool,
}

/// What the first line of a segment turned out to be.
pub(super) enum FirstLine {
    Good(Box<Header>),
    /// Of a newer format.
    Newer(u32),
    /// Needs what this reader does not have.
    Needs(String),
    Bad(&'static str),
}

impl Header {
    /// The line, with its newline.
    pub fn line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.pop();
        let sum = checksum(&line);
        line.extend_from_slice(b",\"sum\":\"");
        line.extend_from_slice(&sum);
        line.extend_from_slice(b"\"}\n");
        Ok(line)
    }

    /// What a line says.
    pub fn read(line: &[u8]) -> FirstLine {
        const SUM: &[u8] = b",\"sum\":\"";
        if line.is_empty() {
            return FirstLine::Bad("it is empty");
        }
        let header = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<Self>(line).ok());
        let Some(header) = header else { return FirstLine::Bad("its first line is not that of an oxenfs journal") };
        let sum = line.windows(SUM.len()).rposition(|part| part == SUM).map(|at| {
            let (before, rest) = line.split_at(at);
            rest[SUM.len()..].starts_with(&checksum(before))
        });
        match (header.oxenfs_journal, sum) {
            (0, _) | (_, Some(false)) | (FORMAT, None) => FirstLine::Bad("its first line is not as it was written"),
            (newer, _) if newer > FORMAT => FirstLine::Newer(newer),
            (FORMAT, _) if header.first == 0 || header.first.max(header.segment) > LAST_NUMBER => {
                FirstLine::Bad("its first line has numbers that none can have")
            }
            _ => match header.needs.iter().find(|need| !FEATURES.contains(&need.as_str())) {
                Some(need) => FirstLine::Needs(need.clone()),
                None => FirstLine::Good(Box::new(header)),
            },
        }
    }
}

/// A line that was read as a frame.
pub(super) enum Frame {
    Good(Good),
    /// Its checksum is right, and what it says is not known here: which part.
    Unknown(String),
    /// Not a frame that anybody wrote.
    Bad,
}

/// A frame that checks.
pub(super) struct Good {
    /// Its number and its link; frames of the first format have none.
    pub chain: Option<(u64, Link)>,
    pub sum: Sum,
    pub changes: Vec<Change>,
    /// Optional fields that are not known here, by the change that has them.
    pub extras: Vec<(usize, Extras)>,
}

/// Fields that are not known here, as they were read.
pub(super) type Extras = Map<String, Value>;

/// Appends what a frame holds to `bodies`, as a line.
pub(super) fn encode_body(changes: &[Change], kept: &mut Kept, bodies: &mut Vec<u8>) {
    let start = bodies.len();
    let written = match kept.is_empty() {
        true => serde_json::to_writer(&mut *bodies, changes),
        false => kept.merged(changes).and_then(|values| serde_json::to_writer(&mut *bodies, &values)),
    };
    // Serializing plain data into memory cannot fail; were it to, the frame would not check and replay would stop
    // there, so it is replaced by an empty one.
    if written.is_err() {
        bodies.truncate(start);
        bodies.extend_from_slice(b"[]");
    }
    bodies.push(b'\n');
}

/// Appends the frame around a body, which ends with its newline, to `frames`; returns its checksum.
pub(super) fn frame(body: &[u8], chain: Option<(u64, &Sum)>, frames: &mut Vec<u8>) -> Sum {
    let start = frames.len();
    frames.resize(start + SUM_DIGITS, b' ');
    frames.push(b' ');
    let summed = frames.len();
    if let Some((number, before)) = chain {
        write_number(number, frames);
        frames.push(b' ');
        frames.extend_from_slice(&link_of(before));
        frames.push(b' ');
    }
    frames.extend_from_slice(body);
    let sum = checksum(&frames[summed..frames.len() - 1]);
    frames[start..start + SUM_DIGITS].copy_from_slice(&sum);
    sum
}

/// What is at most around a body in a frame: sum, number, link and spaces.
pub(super) const AROUND_BYTES: usize = SUM_DIGITS + 1 + 20 + 1 + LINK_DIGITS + 1;

fn write_number(number: u64, buffer: &mut Vec<u8>) {
    let (mut digits, mut at, mut left) = ([0; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    buffer.extend_from_slice(&digits[at..]);
}

/// Reads a line with its newline as a frame of a format.
pub(super) fn decode(line: &[u8], format: u32) -> Frame {
    let Some((sum, chain, body)) = checked(line, format) else { return Frame::Bad };
    match serde_json::from_slice(body) {
        Ok(changes) => Frame::Good(Good { chain, sum, changes, extras: Vec::new() }),
        Err(_) => match decode_with_unknown(body) {
            Ok((changes, extras)) => Frame::Good(Good { chain, sum, changes, extras }),
            Err(what) => Frame::Unknown(what),
        },
    }
}

type Checked<'a> = (Sum, Option<(u64, Link)>, &'a [u8]);

/// The parts of a line whose checksum is right.
fn checked(line: &[u8], format: u32) -> Option<Checked<'_>> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, rest) = line.split_first_chunk::<SUM_DIGITS>()?;
    let summed = rest.strip_prefix(b" ")?;
    if checksum(summed) != *sum {
        return None;
    }
    if format == UNCHAINED {
        return Some((*sum, None, summed));
    }
    let end = summed.iter().position(|byte| *byte == b' ')?;
    let number = std::str::from_utf8(&summed[..end]).ok()?.parse().ok().filter(|number| *number <= LAST_NUMBER)?;
    let (link, rest) = summed[end + 1..].split_first_chunk::<LINK_DIGITS>()?;
    Some((*sum, Some((number, *link)), rest.strip_prefix(b" ")?))
}

/// Whether bytes that end the record can be the beginning of the frame that would come next, and no more: what a write
/// leaves that was cut short.
pub(super) fn begins_frame(bytes: &[u8], format: u32, number: u64, before: &Sum) -> bool {
    let (sum, rest) = bytes.split_at(bytes.len().min(SUM_DIGITS));
    let hex = sum.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    let mut expected = vec![b' '];
    if format != UNCHAINED {
        write_number(number, &mut expected);
        expected.push(b' ');
        expected.extend_from_slice(&link_of(before));
        expected.push(b' ');
    }
    expected.push(b'[');
    let length = rest.len().min(expected.len());
    // A whole frame that lacks its newline alone is no beginning if something else is in the newline's place.
    let whole = bytes.split_last().is_some_and(|(_, frame)| checked(&[frame, b"\n"].concat(), format).is_some());
    hex && rest[..length] == expected[..length] && !bytes.iter().any(|byte| matches!(byte, b'\n' | 0)) && !whole
}

pub(super) fn checksum(body: &[u8]) -> Sum {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digest: [u8; 32] = Sha256::digest(body).into();
    std::array::from_fn(|i| HEX[usize::from(digest[i / 2] >> (4 * (1 - i % 2))) & 15])
}

/// The fields of a kind that is known here.
fn fields_of(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "inode" => &["k", "i", "at", "b"],
        "xattr" => &["k", "i", "n", "v"],
        "noxattr" => &["k", "i", "n"],
        "link" => &["k", "p", "n", "i"],
        "unlink" => &["k", "p", "n", "h"],
        "hide" | "unhide" | "ignore" | "unignore" => &["k", "p", "n"],
        "drop" => &["k", "i"],
        "account" => &["k", "p", "a"],
        "conflict" => &["k", "p", "x"],
        "upload" => &["k", "p", "u"],
        "base" => &["k", "c"],
        "rebase" => &["k", "c", "o"],
        "intent" => &["k", "t"],
        "boot" => &["k", "b"],
        "complete" => &["k"],
        _ => return None,
    })
}

/// Objects within a change that may have fields which are not known here: the way to each, and its fields that are.
const NESTED: [(&[&str], &[&str]); 16] = [
    (&["at"], &["m", "u", "g", "a", "t", "c"]),
    (&["b", "remote"], &["object", "origin"]),
    (&["b", "remote", "object"], &["hash", "size"]),
    (&["b", "remote", "origin"], &["revision", "path"]),
    (&["b", "dir"], &["based"]),
    (&["b", "special"], &["format", "rdev"]),
    (&["a"], &["b", "s", "l"]),
    (&["a", "b"], &["hash", "size"]),
    (&["a", "s", "put"], &["hash", "size"]),
    (&["x"], &["b", "c", "t"]),
    (&["x", "b"], &["hash", "size"]),
    (&["x", "t", "file"], &["hash", "size"]),
    (&["u"], &["h", "s"]),
    (&["u", "s"], &["id", "part_bytes", "parts"]),
    (&["t"], &["h", "r", "d"]),
    (&["t", "r"], &["branch", "message", "author", "email"]),
];

/// Changes, and the fields that are not known here by the change that has them.
type WithUnknown = (Vec<Change>, Vec<(usize, Extras)>);

/// Reads what has something in it that is not known here, unless that is more than optional fields.
fn decode_with_unknown(body: &[u8]) -> Result<WithUnknown, String> {
    let values: Vec<Value> =
        serde_json::from_slice(body).map_err(|_| "a frame that is no list of changes".to_owned())?;
    let (mut changes, mut extras) = (Vec::new(), Vec::new());
    for (at, mut value) in values.into_iter().enumerate() {
        let kind = value.get("k").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(object) = value.as_object_mut() else { return Err("a change that is no object".into()) };
        let mut unknown = Extras::new();
        if let Some(known) = fields_of(&kind) {
            take_unknown(object, known, &mut unknown)?;
            for (way, known) in NESTED {
                let Some(object) = below(object, way) else { continue };
                let mut found = Extras::new();
                take_unknown(object, known, &mut found)?;
                if !found.is_empty() {
                    put_below(&mut unknown, way, found);
                }
            }
        }
        changes.push(serde_json::from_value(value).map_err(|_| format!("a change of the kind {kind:?}"))?);
        if !unknown.is_empty() {
            extras.push((at, unknown));
        }
    }
    Ok((changes, extras))
}

/// The object to which a way leads, if there is one.
fn below<'a>(object: &'a mut Extras, way: &[&str]) -> Option<&'a mut Extras> {
    way.iter().try_fold(object, |object, field| object.get_mut(*field)?.as_object_mut())
}

/// Puts fields into the object to which a way leads, which is made where it is not there.
fn put_below(object: &mut Extras, way: &[&str], fields: Extras) {
    let Some((field, rest)) = way.split_first() else { return object.extend(fields) };
    let below = object.entry(*field).or_insert_with(|| Extras::new().into());
    if let Some(below) = below.as_object_mut() {
        put_below(below, rest, fields);
    }
}

fn take_unknown(object: &mut Extras, known: &[&str], into: &mut Extras) -> Result<(), String> {
    let names: Vec<String> = object.keys().filter(|name| !known.contains(&name.as_str())).cloned().collect();
    for name in names {
        if name.starts_with(REQUIRED) {
            return Err(format!("the field {name:?}"));
        }
        into.extend(object.remove_entry(&name));
    }
    Ok(())
}

/// Optional fields that are not known here, by what they are about: they go back to the disk with every later frame about
/// it, for whoever knows them.
#[derive(Default)]
pub(super) struct Kept(HashMap<Key, Extras>);

#[derive(PartialEq, Eq, Hash)]
enum Key {
    Inode(Ino),
    Xattr(Ino, Box<[u8]>),
    Link(Ino, Name),
    Hidden(Ino, Name),
    Ignored(Ino, Name),
    Account(RepoPath),
    Conflict(RepoPath),
    Upload(RepoPath),
    Intent,
}

impl Key {
    /// What a change is about, and whether that is there after it.
    fn of(change: &Change) -> Option<(Self, bool)> {
        Some(match change {
            Change::Inode { ino, .. } => (Self::Inode(*ino), true),
            Change::Drop { ino } => (Self::Inode(*ino), false),
            Change::Xattr { ino, name, .. } => (Self::Xattr(*ino, name.clone()), true),
            Change::DropXattr { ino, name } => (Self::Xattr(*ino, name.clone()), false),
            Change::Link { parent, name, .. } => (Self::Link(*parent, name.clone()), true),
            Change::Unlink { parent, name, .. } => (Self::Link(*parent, name.clone()), false),
            Change::Hide { parent, name } => (Self::Hidden(*parent, name.clone()), true),
            Change::Unhide { parent, name } => (Self::Hidden(*parent, name.clone()), false),
            Change::Ignore { parent, name } => (Self::Ignored(*parent, name.clone()), true),
            Change::Unignore { parent, name } => (Self::Ignored(*parent, name.clone()), false),
            Change::Account { path, account } => (Self::Account(path.clone()), account.is_some()),
            Change::Conflict { path, conflict } => (Self::Conflict(path.clone()), conflict.is_some()),
            Change::Upload { path, upload } => (Self::Upload(path.clone()), upload.is_some()),
            Change::Intent { intent } => (Self::Intent, intent.is_some()),
            _ => return None,
        })
    }
}

impl Kept {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes note of what a frame has that was read.
    pub fn note(&mut self, frame: &Good) {
        if self.is_empty() && frame.extras.is_empty() {
            return;
        }
        for (at, change) in frame.changes.iter().enumerate() {
            let Some((key, there)) = Key::of(change) else { continue };
            match frame.extras.iter().find(|(of, _)| *of == at) {
                Some((_, extras)) if there => drop(self.0.insert(key, extras.clone())),
                _ => drop(self.0.remove(&key)),
            }
        }
    }

    /// Changes with the fields that belong to them.
    fn merged(&mut self, changes: &[Change]) -> serde_json::Result<Vec<Value>> {
        changes
            .iter()
            .map(|change| {
                let mut value = serde_json::to_value(change)?;
                match Key::of(change) {
                    Some((key, true)) => {
                        if let (Some(extras), Some(object)) = (self.0.get(&key), value.as_object_mut()) {
                            put_back(object, extras, &mut Vec::new());
                        }
                    }
                    Some((key, false)) => drop(self.0.remove(&key)),
                    None => {}
                }
                Ok(value)
            })
            .collect()
    }
}

/// Puts fields back that are not known here; those of an object that is not there any more go with it.
fn put_back(object: &mut Extras, extras: &Extras, way: &mut Vec<String>) {
    for (name, value) in extras {
        way.push(name.clone());
        let leads_on =
            NESTED.iter().any(|(nested, _)| nested.len() >= way.len() && nested.iter().zip(&*way).all(|(a, b)| a == b));
        match (object.get_mut(name), value) {
            (Some(Value::Object(below)), Value::Object(extras)) if leads_on => put_back(below, extras, way),
            // A field that is known now.
            (Some(_), _) => {}
            (None, _) if leads_on => {}
            (None, value) => drop(object.insert(name.clone(), value.clone())),
        }
        way.pop();
    }
}
