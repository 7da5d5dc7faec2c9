//! The JSON documents of the control frames.
//!
//! Fields that a runner fills in are allegations to the agent: it may show them, and must not size memory or choose paths by them.
//! Every document can be longer than a frame allows (a manifest, a plugin with thousands of functions), so encoding checks.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Header, Kind, MAX_CONTROL_PAYLOAD, WireError};

/// What a sandbox is to become.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Application name.
    pub app: String,
    /// Process name.
    pub process: String,
    /// The ownership term that the process runs in.
    pub epoch: u64,
    /// Image digest, 64 hexadecimal digits.
    pub image: String,
    /// The image's manifest.
    pub manifest: serde_json::Value,
    /// Path of the plugin inside the sandbox.
    pub plugin: String,
    /// What the process may use.
    pub limits: RunnerLimits,
    /// Only load, declare and exit: no segments come and no call will.
    pub probe: bool,
    /// Load, declare, and wait: another assignment follows, which says what process of this image it becomes. Nothing of a process is in
    /// this one.
    #[serde(default)]
    pub prepare: bool,
    /// Which history the state is: 32 hexadecimal digits. Empty in a probe.
    #[serde(default)]
    pub lineage: String,
    /// So many segments of the log follow this frame directly; 0 for new state and for a probe.
    #[serde(default)]
    pub segments: u32,
    /// So many blank segments follow those directly.
    #[serde(default)]
    pub spares: u32,
    /// The smallest segment that the log is to ask for, in bytes.
    #[serde(default)]
    pub segment_min_bytes: u64,
    /// The largest segment that the log is to ask for unless one commit needs more, in bytes.
    #[serde(default)]
    pub segment_max_bytes: u64,
    /// The last commit that is known to have been durable on the node; 0 if none is. A log that ends before it is damaged.
    #[serde(default)]
    pub durable_at_least: u64,
    /// The most bytes under `/state`; 0 where the process has no files.
    #[serde(default)]
    pub files_bytes: u64,
    /// Connections may come (`Caller` frames), on the ring that the sandbox has inherited. Otherwise that is closed before anything of the
    /// tenant runs.
    #[serde(default)]
    pub ring: bool,
    /// How long the reply of a call with an idempotency key is remembered, in milliseconds.
    #[serde(default = "a_day_ms")]
    pub remember_ms: u64,
}

/// Of an agent that does not say.
const fn a_day_ms() -> u64 {
    24 * 3600 * 1000
}

/// A prepared sandbox ([`Assignment::prepare`]) has room for a log of so many segments at first.
pub const MOST_SEGMENTS_OF_PREPARED: u32 = 256;

/// Upper bounds for one process, all vouched for by the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerLimits {
    /// Memory of the sandbox, in bytes.
    pub memory_bytes: u64,
    /// Live objects of the state, in bytes, as the state's quota counts them.
    pub state_bytes: u64,
    /// The longest whole input, in bytes. Streamed inputs are bounded by the same number.
    pub body_bytes: u64,
    /// The longest whole reply, in bytes. Streamed replies are not bounded by it.
    pub reply_bytes: u64,
    /// Threads of the sandbox, ours included.
    pub threads: u32,
}

/// How invocations of a function go beside others of the same process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Concurrency {
    /// Alone, and may write.
    Exclusive,
    /// Beside other read-only ones; cannot write.
    ReadOnly,
    /// Beside any other, with a write set of its own that may conflict.
    Concurrent,
}

impl Concurrency {
    /// From the number in the function ABI.
    pub fn from_abi(number: u32) -> Option<Concurrency> {
        [Concurrency::Exclusive, Concurrency::ReadOnly, Concurrency::Concurrent]
            .into_iter()
            .nth(usize::try_from(number).ok()?)
    }
}

/// What a function takes or gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadKind {
    /// Any bytes.
    Bytes,
    /// A JSON document.
    Json,
    /// An rkyv archive, read in place.
    Archived,
    /// Bytes as they arrive, without an end in sight.
    Stream,
}

impl PayloadKind {
    /// From the number in the function ABI.
    pub fn from_abi(number: u32) -> Option<PayloadKind> {
        [PayloadKind::Bytes, PayloadKind::Json, PayloadKind::Archived, PayloadKind::Stream]
            .into_iter()
            .nth(usize::try_from(number).ok()?)
    }
}

/// One function of a plugin. Its place in [`Declarations::functions`] is the index in `Invoke` frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDecl {
    /// Name, by the same rules as process names.
    pub name: String,
    /// How it goes beside others.
    pub concurrency: Concurrency,
    /// What it takes.
    pub input: PayloadKind,
    /// What it gives.
    pub output: PayloadKind,
    /// The author's description; may be empty.
    #[serde(default)]
    pub doc: String,
    /// Readable layout of an archived input; may be empty.
    #[serde(default)]
    pub input_layout: String,
    /// Readable layout of an archived output; may be empty.
    #[serde(default)]
    pub output_layout: String,
}

/// One type of stored objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeDecl {
    /// Name.
    pub name: String,
    /// Hash of the layout, never 0. Written as text in JSON: other readers of JSON lose the low bits of such numbers.
    #[serde(with = "decimal")]
    pub fingerprint: u64,
    /// Readable layout.
    pub layout: String,
    /// Fingerprints of older layouts that the plugin can turn into this one. As text, like the fingerprint.
    #[serde(default, with = "decimals", skip_serializing_if = "Vec::is_empty")]
    pub migrates_from: Vec<u64>,
}

impl TypeDecl {
    /// Whether a plugin that declares this can read every object that the one which declared `older` could: those of its layout, and
    /// those of the layouts that it migrated from, because objects are migrated when they are met and some may not have been.
    pub fn reads_all_of(&self, older: &TypeDecl) -> bool {
        self.reads(older.fingerprint) && older.migrates_from.iter().all(|from| self.reads(*from))
    }

    /// Whether it can read objects of a layout, as they are or migrated.
    pub fn reads(&self, fingerprint: u64) -> bool {
        self.fingerprint == fingerprint || self.migrates_from.contains(&fingerprint)
    }
}

/// What is in a process's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StateSummary {
    /// Number of the last commit; 0 before the first.
    pub commit: u64,
    /// Bytes of keys and values that a swap-out would keep.
    pub live_bytes: u64,
    /// How many keys there are.
    pub keys: u64,
    /// Number of the last commit that is durable on the node.
    #[serde(default)]
    pub durable: u64,
    /// Bytes of all segments of the log.
    #[serde(default)]
    pub disk_bytes: u64,
}

/// What opening the state found, where that is worth a word.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Recovery {
    /// Whether a tail that never was durable was cut.
    pub torn: bool,
    /// Damaged objects, one readable line each, at most [`Recovery::MAX_DAMAGED`]. Everything else is served.
    pub damaged: Vec<String>,
}

impl Recovery {
    /// So many damaged objects are listed at most.
    pub const MAX_DAMAGED: usize = 100;
}

/// What a plugin declared when it was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declarations {
    /// The function ABI that it was built for.
    pub abi_version: u32,
    /// Its functions, in the order of their indices.
    pub functions: Vec<FunctionDecl>,
    /// The types of its stored objects.
    pub types: Vec<TypeDecl>,
    /// The state that it starts from; all zero in a probe.
    pub state: StateSummary,
    /// What opening the state found; `None` where all was well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// It takes connections (`Caller` frames): the assignment said that they may come, and it could open its ring.
    #[serde(default)]
    pub connections: bool,
}

/// Which step of starting failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LoadFailureKind {
    /// The plugin is missing or no ELF shared object.
    Unreadable,
    /// It was built for another processor.
    WrongArchitecture,
    /// It lacks a symbol that every plugin exports, or needs one that nothing provides.
    MissingSymbol,
    /// It was built for another version of the function ABI.
    AbiVersion,
    /// It needs a shared library that neither the image nor the host has.
    MissingLibrary,
    /// Its own initialisation failed, or it declared something impossible.
    InitFailed,
    /// The process's state is damaged, or belongs to another.
    StateCorrupt,
    /// There is no room for the process's state.
    StateFull,
    /// The host's fault.
    Host,
}

/// Why a runner cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadFailure {
    /// Which step.
    pub kind: LoadFailureKind,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Why an invocation gave no reply. Where the function ABI has a number for it, [`FailKind::from_abi`] knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FailKind {
    /// The function's own error.
    Failed,
    /// The function says that the caller sent something wrong.
    BadInput,
    /// The function panicked.
    Panicked,
    /// A stored object has another layout than the function's type.
    TypeChanged,
    /// The state quota is used up.
    Quota,
    /// The input or the reply is over its limit.
    TooLarge,
    /// The caller went away.
    Cancelled,
    /// A broken rule of the interface or a fault in the host.
    Internal,
    /// The deadline passed.
    Deadline,
    /// No function has this index.
    UnknownFunction,
    /// The sandbox is draining and starts nothing: call again.
    Draining,
    /// Too many calls wait in this process: call again later.
    Overloaded,
    /// The input broke off before its end.
    InputBroken,
    /// The node's disk is full.
    StoreFull,
    /// The state cannot be written or synced. What the reply would have said may have been committed or not; the process ends itself after
    /// it has said so, and its successor knows.
    StoreBroken,
    /// Another invocation changed what this one had read or written: nothing of it was committed, and a retry is safe.
    Conflict,
    /// A built-in function found no such object.
    NotFound,
    /// An object is damaged. Others are served.
    StateCorrupt,
    /// The idempotency key stands for another call: of another function, or with another input.
    KeyReused,
    /// An earlier call with the same idempotency key still ran when this one's time was over. It had no part in that.
    InProgress,
    /// An earlier call with the same idempotency key has committed in the middle, and its process ended before it did.
    Interrupted,
}

impl FailKind {
    /// From the number in the function ABI, or `None` for a number that it does not define.
    pub fn from_abi(number: u32) -> Option<FailKind> {
        use FailKind::{
            BadInput, Cancelled, Conflict, Failed, Internal, Panicked, Quota, StateCorrupt, TooLarge,
            TypeChanged,
        };
        [
            Failed,
            BadInput,
            Panicked,
            TypeChanged,
            Quota,
            TooLarge,
            Cancelled,
            Internal,
            Conflict,
            StateCorrupt,
        ]
        .into_iter()
        .nth(usize::try_from(number).ok()?)
    }
}

/// The end of an invocation that gave no reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub kind: FailKind,
    /// For people; at most [`Failure::MAX_MESSAGE`] bytes.
    pub message: String,
    /// Whether code of the function ran: if not, a retry is always safe.
    pub started: bool,
    /// Whether the invocation had committed something before it failed (`commit` in the middle): then a retry is not safe.
    pub committed: bool,
    /// More for programs, where there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
    /// Remembered from an earlier call with the same idempotency key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
}

impl Failure {
    /// Longest message in bytes; what is longer is cut at a character.
    pub const MAX_MESSAGE: usize = 32 << 10;

    /// A failure before the function's code ran.
    pub fn unstarted(kind: FailKind, message: impl Into<String>) -> Failure {
        Failure {
            kind,
            message: cut(message.into()),
            started: false,
            committed: false,
            detail: None,
            replayed: false,
        }
    }

    /// A failure of a function that ran.
    pub fn of_function(kind: FailKind, message: impl Into<String>, committed: bool) -> Failure {
        Failure {
            kind,
            message: cut(message.into()),
            started: true,
            committed,
            detail: None,
            replayed: false,
        }
    }

    /// The whole `Fail` frame: `last_commit` goes into the header.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when `detail` makes it longer than [`MAX_CONTROL_PAYLOAD`].
    pub fn frame(&self, id: u64, last_commit: u64) -> Result<Vec<u8>, WireError> {
        document_frame(Header { c: last_commit, ..Header::new(Kind::Fail, id) }, self)
    }
}

impl Assignment {
    /// The whole `Assign` frame.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the manifest makes it longer than [`MAX_CONTROL_PAYLOAD`].
    pub fn frame(&self) -> Result<Vec<u8>, WireError> {
        document_frame(Header::new(Kind::Assign, 0), self)
    }
}

impl Declarations {
    /// The whole `Ready` frame.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the plugin declared more than [`MAX_CONTROL_PAYLOAD`] bytes.
    pub fn frame(&self) -> Result<Vec<u8>, WireError> {
        document_frame(Header::new(Kind::Ready, 0), self)
    }
}

impl LoadFailure {
    /// The whole `Refused` frame; texts that are too long are cut.
    ///
    /// # Errors
    /// [`WireError::BadDocument`], which these fields cannot cause.
    pub fn frame(&self) -> Result<Vec<u8>, WireError> {
        let short = LoadFailure {
            kind: self.kind,
            message: cut(self.message.clone()),
            remedy: cut(self.remedy.clone()),
        };
        document_frame(Header::new(Kind::Refused, 0), &short)
    }
}

/// A document that travels in a control frame.
pub(crate) fn document_frame<T: Serialize>(header: Header, document: &T) -> Result<Vec<u8>, WireError> {
    let kind = header.kind;
    let bad = |why: String| WireError::BadDocument { kind, why };
    let mut frame = vec![0; crate::HEADER_LEN];
    serde_json::to_writer(&mut frame, document).map_err(|error| bad(error.to_string()))?;
    let len = frame.len() - crate::HEADER_LEN;
    if len > MAX_CONTROL_PAYLOAD {
        return Err(WireError::TooLong { kind, len, max: MAX_CONTROL_PAYLOAD });
    }
    frame[..crate::HEADER_LEN].copy_from_slice(&header.with_payload(len).encode());
    Ok(frame)
}

/// Reads the document of a control frame.
pub(crate) fn read_document<T: DeserializeOwned>(kind: Kind, payload: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(payload).map_err(|error| WireError::BadDocument { kind, why: error.to_string() })
}

fn cut(mut text: String) -> String {
    if text.len() > Failure::MAX_MESSAGE {
        let end = (0..=Failure::MAX_MESSAGE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Numbers over 2^53 as text.
pub(crate) mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// The same for a list.
mod decimals {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(numbers: &[u64], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(numbers.iter().map(u64::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
        let numbers = Vec::<String>::deserialize(from)?;
        numbers.iter().map(|number| number.parse().map_err(D::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Frame, FrameReader, Sender};

    fn declarations() -> Declarations {
        Declarations {
            abi_version: 1,
            functions: vec![FunctionDecl {
                name: "increment".into(),
                concurrency: Concurrency::ReadOnly,
                input: PayloadKind::Json,
                output: PayloadKind::Stream,
                doc: String::new(),
                input_layout: String::new(),
                output_layout: String::new(),
            }],
            types: vec![TypeDecl {
                name: "Counter".into(),
                fingerprint: u64::MAX - 1,
                layout: "struct".into(),
                migrates_from: vec![u64::MAX - 2, 7],
            }],
            state: StateSummary { commit: 3, live_bytes: 4, keys: 5, durable: 2, disk_bytes: 1 << 20 },
            recovery: Some(Recovery { torn: true, damaged: vec!["segment 3".into()] }),
            connections: true,
        }
    }

    fn through_the_wire<T: DeserializeOwned>(frame: &[u8], sender: Sender) -> Result<T, WireError> {
        let mut reader = FrameReader::new(sender);
        reader.push(frame);
        let Frame { header, payload } = reader.frame()?.expect("a whole frame was pushed");
        read_document(header.kind, payload)
    }

    #[test]
    fn a_newer_type_reads_all_of_an_older_one_only_with_every_migration() {
        let declared = |fingerprint, migrates_from: &[u64]| TypeDecl {
            name: "Counter".into(),
            fingerprint,
            layout: String::new(),
            migrates_from: migrates_from.to_vec(),
        };
        for (newer, older, all) in [
            (declared(1, &[]), declared(1, &[]), true),
            (declared(2, &[]), declared(1, &[]), false),
            (declared(2, &[1]), declared(1, &[]), true),
            (declared(1, &[2]), declared(2, &[]), true),
            (declared(3, &[1, 2]), declared(2, &[1]), true),
            // Some objects may be of the first layout still.
            (declared(3, &[2]), declared(2, &[1]), false),
            (declared(2, &[]), declared(2, &[1]), false),
        ] {
            assert_eq!(newer.reads_all_of(&older), all, "{newer:?} after {older:?}");
        }
    }

    #[test]
    fn declarations_survive_the_wire_with_all_bits_of_a_fingerprint() {
        let frame = declarations().frame().unwrap();
        assert_eq!(through_the_wire::<Declarations>(&frame, Sender::Runner), Ok(declarations()));
        let text = String::from_utf8_lossy(&frame);
        assert!(
            text.contains("\"18446744073709551614\""),
            "a JSON number would lose bits in other readers: {text}"
        );
        assert!(text.contains("\"read-only\""));
    }

    #[test]
    fn every_truncation_of_a_document_is_refused() {
        let frame = declarations().frame().unwrap();
        let document = &frame[crate::HEADER_LEN..];
        for cut in 0..document.len() {
            let result = read_document::<Declarations>(Kind::Ready, &document[..cut]);
            assert!(matches!(result, Err(WireError::BadDocument { .. })), "cut at {cut}");
        }
    }

    #[test]
    fn a_document_over_the_limit_is_refused_before_it_is_sent() {
        let mut assignment = Assignment {
            app: "a".into(),
            process: "p".into(),
            epoch: 1,
            image: "0".repeat(64),
            manifest: serde_json::json!({"name": "a"}),
            plugin: "/image/plugin.so".into(),
            limits: RunnerLimits {
                memory_bytes: 1,
                state_bytes: 2,
                body_bytes: 3,
                reply_bytes: 4,
                threads: 5,
            },
            probe: true,
            lineage: "0".repeat(32),
            segments: 6,
            spares: 7,
            segment_min_bytes: 8,
            segment_max_bytes: 9,
            durable_at_least: 10,
            files_bytes: 11,
            ring: true,
            remember_ms: 12,
            prepare: false,
        };
        let frame = assignment.frame().unwrap();
        assert_eq!(through_the_wire::<Assignment>(&frame, Sender::Agent), Ok(assignment.clone()));
        assignment.manifest = serde_json::Value::String("x".repeat(MAX_CONTROL_PAYLOAD));
        assert!(matches!(assignment.frame(), Err(WireError::TooLong { kind: Kind::Assign, .. })));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character_and_still_fits() {
        let failure = Failure::of_function(FailKind::Panicked, "\u{20ac}".repeat(1 << 20), true);
        assert!(failure.message.len() <= Failure::MAX_MESSAGE);
        assert!(failure.message.chars().all(|c| c == '\u{20ac}'));
        // Worst case: a message of control characters is six times as long in JSON.
        let worst = Failure::unstarted(FailKind::Internal, "\u{1}".repeat(1 << 20));
        let frame = worst.frame(9, 4).unwrap();
        assert_eq!(through_the_wire::<Failure>(&frame, Sender::Runner), Ok(worst));
        let refused = LoadFailure {
            kind: LoadFailureKind::InitFailed,
            message: "\u{1}".repeat(1 << 20),
            remedy: "\u{1}".repeat(1 << 20),
        };
        assert!(refused.frame().is_ok());
    }

    #[test]
    fn names_of_kinds_are_stable() {
        let text = |kind: FailKind| serde_json::to_string(&kind).unwrap();
        assert_eq!(text(FailKind::BadInput), "\"bad-input\"");
        assert_eq!(text(FailKind::TypeChanged), "\"type-changed\"");
        assert_eq!(
            serde_json::to_string(&LoadFailureKind::WrongArchitecture).unwrap(),
            "\"wrong-architecture\""
        );
        assert_eq!(serde_json::to_string(&LoadFailureKind::AbiVersion).unwrap(), "\"abi-version\"");
    }

    #[test]
    fn abi_numbers_map_in_order_and_no_further() {
        assert_eq!(FailKind::from_abi(0), Some(FailKind::Failed));
        assert_eq!(FailKind::from_abi(7), Some(FailKind::Internal));
        assert_eq!(FailKind::from_abi(8), Some(FailKind::Conflict));
        assert_eq!(FailKind::from_abi(9), Some(FailKind::StateCorrupt));
        assert_eq!(FailKind::from_abi(10), None);
        assert_eq!(FailKind::from_abi(u32::MAX), None);
        assert_eq!(Concurrency::from_abi(1), Some(Concurrency::ReadOnly));
        assert_eq!(Concurrency::from_abi(3), None);
        assert_eq!(PayloadKind::from_abi(3), Some(PayloadKind::Stream));
        assert_eq!(PayloadKind::from_abi(4), None);
        for kind in denizen_abi::FailKind::ALL {
            let here = FailKind::from_abi(kind.as_u32()).map(|kind| format!("{kind:?}"));
            let name = format!("{kind:?}").replace("Corrupt", "StateCorrupt");
            assert_eq!(here, Some(name));
        }
        for concurrency in denizen_abi::Concurrency::ALL {
            assert_eq!(
                format!("{:?}", Concurrency::from_abi(concurrency.as_u32())),
                format!("{:?}", Some(concurrency))
            );
        }
        for payload in denizen_abi::Payload::ALL {
            assert_eq!(
                format!("{:?}", PayloadKind::from_abi(payload.as_u32())),
                format!("{:?}", Some(payload))
            );
        }
    }
}
