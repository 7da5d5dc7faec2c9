//! Functions that the runner has itself: looking at state and changing it, without code of the tenant.
//!
//! They are invoked like any function, with bodies, replies and credit; their indices are above those of any plugin. What goes in and
//! comes out is here, so that both ends agree. Keys are any bytes, and travel in JSON as hexadecimal digits.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::WireError;
use crate::control::decimal;

/// How durable a commit is, or is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u16)]
pub enum Durability {
    /// It survives the sandbox and the agent.
    #[default]
    Process = 0,
    /// It survives the loss of the node's power.
    Node = 1,
}

impl Durability {
    /// The number in frames.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// From the `code` of `Invoke` and `Sync` frames.
    pub fn from_code(code: u16) -> Option<Durability> {
        [Durability::Process, Durability::Node].into_iter().find(|one| one.code() == code)
    }

    /// From the `b` of reply frames. A level that is not known is one that this end was not told of: it counts as the lowest.
    pub fn reached(b: u32) -> Durability {
        u16::try_from(b).ok().and_then(Durability::from_code).unwrap_or_default()
    }
}

/// What became of the files in `/state` when a process ended in order: `a` of a `Drained` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum LastCapture {
    /// They are kept, or there are none.
    #[default]
    Kept = 0,
    /// They were not captured, and that is the function's doing: its state is full, or a file cannot be read.
    Refused = 1,
    /// They were not captured because the node has no room.
    NoRoom = 2,
}

impl LastCapture {
    /// From the number on the wire. One that is not known is not taken for a promise.
    pub fn from_number(number: u32) -> LastCapture {
        [LastCapture::Kept, LastCapture::NoRoom]
            .into_iter()
            .find(|one| *one as u32 == number)
            .unwrap_or(LastCapture::Refused)
    }
}

/// The lowest index that no plugin's function has.
const FIRST: u32 = 0xFFFF_FF00;

/// A function of the runner: `a` of an `Invoke` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Builtin {
    /// Keys: takes [`ListAsk`], gives [`Listing`], both JSON.
    StateList = FIRST,
    /// An object: takes its key, gives its value, and a [`ValueHead`] as content type. `NotFound` if there is none.
    StateGet = FIRST + 1,
    /// Puts an object: takes what [`encode_put`] writes, gives nothing.
    StatePut = FIRST + 2,
    /// Deletes an object: takes its key, gives nothing. `NotFound` if there is none.
    StateDelete = FIRST + 3,
    /// All objects: gives the records of an [`archive`](crate::archive).
    StateExport = FIRST + 4,
    /// Puts all objects of an archive: takes its records, gives [`Imported`] as JSON. It commits as it goes.
    StateImport = FIRST + 5,
    /// Captures the files in `/state`: takes the quota in bytes from now on as a little-endian `u64`, if it is higher than before (0:
    /// it stays), and gives nothing.
    FilesKeep = FIRST + 6,
    /// Captured files: takes nothing, gives [`FileListing`] as JSON.
    FilesList = FIRST + 7,
    /// The bytes of a captured file: takes its path below `/state`. `NotFound` if there is none.
    FilesGet = FIRST + 8,
    /// All captured files and directories, as a [`tar`](crate::tar) archive.
    FilesExport = FIRST + 9,
}

impl Builtin {
    /// All of them.
    pub const ALL: [Builtin; 10] = [
        Builtin::StateList,
        Builtin::StateGet,
        Builtin::StatePut,
        Builtin::StateDelete,
        Builtin::StateExport,
        Builtin::StateImport,
        Builtin::FilesKeep,
        Builtin::FilesList,
        Builtin::FilesGet,
        Builtin::FilesExport,
    ];

    /// The `a` of its `Invoke` frames.
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The function with this index, if it is a built-in.
    pub fn from_index(index: u32) -> Option<Builtin> {
        Builtin::ALL.into_iter().find(|one| one.index() == index)
    }

    /// Its name, for logs and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Builtin::StateList => "state-list",
            Builtin::StateGet => "state-get",
            Builtin::StatePut => "state-put",
            Builtin::StateDelete => "state-delete",
            Builtin::StateExport => "state-export",
            Builtin::StateImport => "state-import",
            Builtin::FilesKeep => "files-keep",
            Builtin::FilesList => "files-list",
            Builtin::FilesGet => "files-get",
            Builtin::FilesExport => "files-export",
        }
    }

    /// Whether it changes state: then it runs as an exclusive function.
    pub const fn writes(self) -> bool {
        matches!(self, Builtin::StatePut | Builtin::StateDelete | Builtin::StateImport | Builtin::FilesKeep)
    }
}

/// What [`Builtin::StateList`] takes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListAsk {
    /// Only keys that begin with this.
    #[serde(with = "hex", default)]
    pub prefix: Vec<u8>,
    /// Only keys that come after this one.
    #[serde(with = "hex_or_none", default)]
    pub after: Option<Vec<u8>>,
    /// At most so many keys; the runner gives at most [`Listing::MAX_KEYS`].
    pub limit: u64,
}

/// What [`Builtin::StateList`] gives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listing {
    /// In the order of their bytes.
    pub keys: Vec<ListedKey>,
    /// Whether there are more behind the last of these.
    pub more: bool,
    /// The commit that this is the state of.
    pub commit: u64,
}

impl Listing {
    /// The most keys in one listing: with the longest keys it is still a few megabytes.
    pub const MAX_KEYS: usize = 1000;

    /// Takes the next key; breaks off, noting that there is more, where that is one too many.
    pub fn take(&mut self, ask: &ListAsk, key: ListedKey) -> ControlFlow<()> {
        let most = usize::try_from(ask.limit).unwrap_or(usize::MAX).clamp(1, Listing::MAX_KEYS);
        if self.keys.len() >= most {
            self.more = true;
            return ControlFlow::Break(());
        }
        self.keys.push(key);
        ControlFlow::Continue(())
    }
}

/// An object, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedKey {
    /// Its key.
    #[serde(with = "hex")]
    pub key: Vec<u8>,
    /// Length of its value in bytes.
    pub bytes: u64,
    /// The fingerprint that it was put with; 0 for plain bytes. As text: other readers of JSON lose the low bits of such numbers.
    #[serde(with = "decimal")]
    pub fingerprint: u64,
    /// Number of the commit that wrote it.
    pub version: u64,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
}

/// What [`Builtin::StateImport`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Imported {
    /// How many objects were put.
    pub keys: u64,
    /// The commit that put the last of them.
    pub commit: u64,
}

/// What [`Builtin::FilesList`] gives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileListing {
    /// In the order of their paths.
    pub files: Vec<ListedFile>,
    /// The commit that this is the state of.
    pub commit: u64,
}

/// A captured file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Its path below `/state`.
    #[serde(with = "hex")]
    pub path: Vec<u8>,
    /// What it is.
    #[serde(flatten)]
    pub kind: ListedFileKind,
}

/// What stands under a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ListedFileKind {
    /// A directory.
    Directory {
        /// The nine permission bits.
        mode: u32,
    },
    /// A file.
    File {
        /// The nine permission bits.
        mode: u32,
        /// Its length in bytes.
        bytes: u64,
        /// When it was modified, in seconds since 1970.
        modified_s: i64,
    },
    /// Nobody can tell: its entry is damaged.
    Damaged {
        /// What is wrong.
        why: String,
    },
}

/// What is said of an object beside its value: content type of the reply of [`Builtin::StateGet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueHead {
    /// The fingerprint that it was put with; 0 for plain bytes.
    pub fingerprint: u64,
    /// Number of the commit that wrote it.
    pub version: u64,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
}

impl ValueHead {
    const MEDIA: &str = "application/vnd.denizen.value";

    /// As a content type.
    pub fn content_type(&self) -> String {
        let ValueHead { fingerprint, version, time_ms } = self;
        format!("{}; fingerprint={fingerprint}; version={version}; time-ms={time_ms}", Self::MEDIA)
    }

    /// From a content type; `None` if it is another one.
    pub fn parse(content_type: &str) -> Option<ValueHead> {
        let mut fields = content_type.split("; ");
        if fields.next() != Some(Self::MEDIA) {
            return None;
        }
        let mut number = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        let head = ValueHead {
            fingerprint: number("fingerprint")?,
            version: number("version")?,
            time_ms: number("time-ms")?,
        };
        fields.next().is_none().then_some(head)
    }
}

/// Appends what [`Builtin::StatePut`] takes before the value: the value's bytes follow.
///
/// # Errors
/// [`WireError::BadHead`] for a key over 65535 bytes; `out` is then unchanged.
pub fn encode_put(out: &mut Vec<u8>, key: &[u8], fingerprint: u64) -> Result<(), WireError> {
    let len = u16::try_from(key.len()).map_err(|_| WireError::BadHead("the key is over 65535 bytes"))?;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(&fingerprint.to_le_bytes());
    Ok(())
}

/// Splits what [`Builtin::StatePut`] takes into key, fingerprint and value.
///
/// # Errors
/// [`WireError::BadHead`] if it is cut short.
pub fn decode_put(bytes: &[u8]) -> Result<(&[u8], u64, &[u8]), WireError> {
    let short = WireError::BadHead("a put is cut short before its value");
    let (len, rest) = bytes.split_first_chunk::<2>().ok_or(short.clone())?;
    let (key, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))).ok_or(short.clone())?;
    let (fingerprint, value) = rest.split_first_chunk::<8>().ok_or(short)?;
    Ok((key, u64::from_le_bytes(*fingerprint), value))
}

/// Bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// Bytes from hexadecimal digits of either case; `None` if it is something else.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::to_hex(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        super::from_hex(&String::deserialize(from)?).ok_or_else(|| D::Error::custom("not hexadecimal"))
    }
}

mod hex_or_none {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => to.serialize_some(&super::to_hex(bytes)),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| super::from_hex(&text).ok_or_else(|| D::Error::custom("not hexadecimal"))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_above_every_function_and_come_back() {
        for builtin in Builtin::ALL {
            assert!(builtin.index() >= 0xFFFF_FF00);
            assert_eq!(Builtin::from_index(builtin.index()), Some(builtin));
        }
        assert_eq!(Builtin::from_index(0), None);
        assert_eq!(Builtin::from_index(u32::MAX), None);
    }

    #[test]
    fn durability_is_never_taken_for_more_than_it_is() {
        assert_eq!(Durability::from_code(1), Some(Durability::Node));
        assert_eq!(Durability::from_code(2), None);
        assert_eq!(Durability::reached(1), Durability::Node);
        assert_eq!(Durability::reached(2), Durability::Process);
        assert_eq!(Durability::reached(0x1_0001), Durability::Process);
    }

    #[test]
    fn listings_survive_with_all_bits() {
        let ask = ListAsk { prefix: vec![0, 0xFF], after: Some(vec![]), limit: 5 };
        let text = serde_json::to_string(&ask).unwrap();
        assert_eq!(text, r#"{"prefix":"00ff","after":"","limit":5}"#);
        assert_eq!(serde_json::from_str::<ListAsk>(&text).unwrap(), ask);
        let short: ListAsk = serde_json::from_str(r#"{"prefix":"","after":null,"limit":1}"#).unwrap();
        assert_eq!(short, ListAsk { limit: 1, ..ListAsk::default() });
        assert!(serde_json::from_str::<ListAsk>(r#"{"prefix":"0","limit":1}"#).is_err());
        assert!(serde_json::from_str::<ListAsk>(r#"{"prefix":"\u00e90","limit":1}"#).is_err());
        let key = ListedKey { key: b"k".to_vec(), bytes: 1, fingerprint: u64::MAX, version: 2, time_ms: 3 };
        let listing = Listing { keys: vec![key], more: true, commit: 9 };
        let text = serde_json::to_string(&listing).unwrap();
        assert!(text.contains(r#""fingerprint":"18446744073709551615""#), "{text}");
        assert_eq!(serde_json::from_str::<Listing>(&text).unwrap(), listing);
    }

    #[test]
    fn a_value_head_is_a_content_type() {
        let head = ValueHead { fingerprint: u64::MAX, version: 7, time_ms: 0 };
        let text = head.content_type();
        assert!(crate::ReplyHead::accepts(&text));
        assert_eq!(ValueHead::parse(&text), Some(head));
        for other in ["", "text/plain", &text[1..], &text[..text.len() - 1], &format!("{text}; x=1")] {
            assert_eq!(ValueHead::parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_known_of_files_is_no_promise() {
        for one in [LastCapture::Kept, LastCapture::Refused, LastCapture::NoRoom] {
            assert_eq!(LastCapture::from_number(one as u32), one);
        }
        assert_eq!(LastCapture::from_number(7), LastCapture::Refused);
        let listed = ListedFile {
            path: b"a/\xff".to_vec(),
            kind: ListedFileKind::File { mode: 0o640, bytes: 5, modified_s: -1 },
        };
        let json = serde_json::to_value(&listed).unwrap();
        assert_eq!(
            (&json["path"], &json["kind"], &json["bytes"]),
            (&"612fff".into(), &"file".into(), &5.into())
        );
        assert_eq!(serde_json::from_value::<ListedFile>(json).unwrap(), listed);
    }

    #[test]
    fn every_truncation_of_a_put_is_refused() {
        let mut bytes = Vec::new();
        encode_put(&mut bytes, b"key", 9).unwrap();
        let head = bytes.len();
        bytes.extend_from_slice(b"value");
        for cut in 0..head {
            assert!(decode_put(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(decode_put(&bytes), Ok((&b"key"[..], 9, &b"value"[..])));
        assert!(encode_put(&mut bytes, &[0; 65_536], 0).is_err());
    }
}
