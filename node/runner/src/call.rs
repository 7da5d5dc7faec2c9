//! One invocation: what it was asked, what it has done so far, and how it ended.
//!
//! A [`Call`] waits and travels between threads. An [`Active`] exists only while its function runs, on the stack of the thread that
//! runs it.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use denizen_abi as abi;
use denizen_engine::{
    Access as Turn, KeyInfo, MAX_KEY_LEN, Reply, Savepoint, Snapshot, StateError, Transaction, Value,
};
use denizen_wire::{CancelReason, Durability, FailKind, Failure, ReplyHead};

use crate::buffers::Body;
use crate::declare::{Function, Mode};
use crate::files;
use crate::inbox::{Inbox, InputEnd, Taken};
use crate::remembered::{End, Fingerprint, Identity, MAX_REMEMBERED, Record};
use crate::reply::Begins;
use crate::serve::Runner;
use crate::trouble::Trouble;

/// Of an input that is read only to be compared, so many bytes are read at a time.
const INPUT_PIECE: usize = 16 << 10;

/// An invocation whose function may be run.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: u64,
    pub(crate) function: &'static Function,
    pub(crate) inbox: Arc<Inbox>,
    /// The whole input; `None` if it streams.
    pub(crate) input: Option<Body>,
    pub(crate) content_type: Box<str>,
    pub(crate) invocation: Box<str>,
    /// What the commit is to have survived when the reply is sent.
    pub(crate) wanted: Durability,
    /// The idempotency key: what stands for this call when it is made again.
    pub(crate) key: Option<Box<str>>,
    /// The state that remembers an earlier call with the key: how that ended is the answer. `None` from whoever receives a call.
    pub(crate) known: Option<Snapshot>,
}

impl Call {
    pub(crate) fn mode(&self) -> Mode {
        // Nothing runs but the look at what is remembered.
        if self.known.is_some() { Mode::ReadOnly } else { self.function.mode() }
    }
}

/// What an invocation with an idempotency key keeps for those who ask again.
#[derive(Debug)]
struct Keyed {
    key: Box<str>,
    fingerprint: Fingerprint,
    /// What was streamed of the reply.
    streamed: Vec<u8>,
    /// It is too long to be remembered.
    overflowed: bool,
    /// A commit in the middle has written down that it has begun.
    begun: bool,
}

impl Keyed {
    fn new(key: Box<str>, function: &str, content_type: &str, input: Option<&Body>) -> Box<Keyed> {
        let mut fingerprint = Fingerprint::new(function, content_type);
        input.into_iter().for_each(|input| fingerprint.read_whole(input.bytes()));
        Box::new(Keyed { key, fingerprint, streamed: Vec::new(), overflowed: false, begun: false })
    }

    fn stream(&mut self, bytes: &[u8]) -> Result<(), i32> {
        self.overflowed |= self.streamed.len() + bytes.len() > MAX_REMEMBERED;
        if self.overflowed {
            return Err(abi::DZ_E_TOO_LARGE);
        }
        self.streamed.extend_from_slice(bytes);
        Ok(())
    }
}

/// The state as an invocation may use it.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one on the stack of each running call, and no other")]
pub(crate) enum Access {
    Write(Transaction),
    Read(Snapshot),
}

impl Access {
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Value<'_>>, StateError> {
        match self {
            Access::Write(transaction) => transaction.get(key),
            Access::Read(snapshot) => snapshot.get(key),
        }
    }

    fn get_range(&self, key: &[u8], offset: u64, len: u64) -> Result<Option<&[u8]>, StateError> {
        match self {
            Access::Write(transaction) => transaction.get_range(key, offset, len),
            Access::Read(snapshot) => snapshot.get_range(key, offset, len),
        }
    }

    fn info(&self, key: &[u8]) -> Option<KeyInfo> {
        match self {
            Access::Write(transaction) => transaction.info(key),
            Access::Read(snapshot) => snapshot.info(key),
        }
    }

    pub(crate) fn scan<'s>(
        &'s self,
        prefix: &'s [u8],
        after: Option<&'s [u8]>,
        visit: impl FnMut(&'s [u8], Value<'s>) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        match self {
            Access::Write(transaction) => transaction.scan(prefix, after, visit),
            Access::Read(snapshot) => snapshot.scan(prefix, after, visit),
        }
    }

    pub(crate) fn keys<'s>(
        &'s self,
        prefix: &'s [u8],
        after: Option<&'s [u8]>,
        visit: impl FnMut(&'s [u8], KeyInfo) -> ControlFlow<()>,
    ) {
        match self {
            Access::Write(transaction) => transaction.keys(prefix, after, visit),
            Access::Read(snapshot) => snapshot.keys(prefix, after, visit),
        }
    }

    fn commit_number(&self) -> u64 {
        match self {
            Access::Write(transaction) => transaction.commit_number(),
            Access::Read(snapshot) => snapshot.commit_number(),
        }
    }
}

/// Where the function is with its input.
#[derive(Debug)]
enum Input {
    Whole(Body),
    /// Nothing read yet.
    Stream,
    /// `input_read` has begun.
    Reading,
}

/// What the function has given so far.
#[derive(Debug)]
pub(crate) enum Output {
    None,
    Whole(Body),
    /// This part of the whole input.
    OfInput(Range<usize>),
    Streaming,
}

/// An invocation whose function runs.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) runner: &'static Runner,
    pub(crate) id: u64,
    pub(crate) function: &'static Function,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) content_type: Box<str>,
    pub(crate) invocation: Box<str>,
    /// The trace that it belongs to, as the HTTP header has it; empty where there is none.
    pub(crate) traceparent: Box<str>,
    pub(crate) access: Access,
    wanted: Durability,
    /// Whether it may run once more if it meets a conflict.
    may_rerun: bool,
    input: Input,
    read_so_far: usize,
    reply_type: String,
    output: Output,
    failure: Option<(FailKind, String)>,
    pub(crate) trouble: Trouble,
    committed: bool,
    /// Open savepoints, and what the function calls them.
    savepoints: Vec<(u64, Savepoint)>,
    next_savepoint: u64,
    keyed: Option<Box<Keyed>>,
}

/// How an invocation ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Reply { body: Option<Body>, content_type: String, commit: u64, replayed: bool },
    StreamEnd { commit: u64 },
    Failed { failure: Failure, commit: u64 },
}

/// What comes after a function returned.
#[derive(Debug)]
pub(crate) enum Ended {
    Done(Outcome),
    /// It met a conflict and left no trace: the same again, alone.
    Again(Call),
}

impl Active {
    pub(crate) fn new(runner: &'static Runner, call: Call, access: Access, may_rerun: bool) -> Active {
        let name = &call.function.decl.name;
        let keyed = |key| Keyed::new(key, name, &call.content_type, call.input.as_ref());
        Active {
            runner,
            keyed: call.key.map(keyed),
            id: call.id,
            function: call.function,
            traceparent: call.inbox.trace.map_or_else(Box::default, |trace| trace.to_string().into()),
            inbox: call.inbox,
            content_type: call.content_type,
            invocation: call.invocation,
            access,
            wanted: call.wanted,
            may_rerun,
            input: call.input.map_or(Input::Stream, Input::Whole),
            read_so_far: 0,
            reply_type: String::new(),
            output: Output::None,
            failure: None,
            trouble: Trouble::default(),
            committed: false,
            savepoints: Vec::new(),
            next_savepoint: 1,
        }
    }

    /// Milliseconds left, [`abi::DZ_NO_DEADLINE`] if there is none.
    pub(crate) fn deadline_ms(&self) -> u64 {
        let left = |at: Instant| at.saturating_duration_since(Instant::now());
        let ms = |left: Duration| u64::try_from(left.as_millis()).unwrap_or(abi::DZ_NO_DEADLINE);
        self.inbox.deadline().map_or(abi::DZ_NO_DEADLINE, |at| ms(left(at)))
    }

    /// The whole input.
    pub(crate) fn input(&mut self) -> Result<&[u8], i32> {
        if matches!(self.input, Input::Stream) {
            let body = self.collect_input()?;
            self.input = Input::Whole(body);
        }
        match &self.input {
            Input::Whole(body) if self.read_so_far == 0 => Ok(body.bytes()),
            _ => Err(abi::DZ_E_INVALID),
        }
    }

    /// The next bytes of the input; 0 at its end.
    pub(crate) fn input_read(&mut self, into: &mut [u8]) -> Result<usize, i32> {
        if into.is_empty() {
            return Err(abi::DZ_E_INVALID);
        }
        if let Input::Whole(body) = &self.input {
            let rest = &body.bytes()[self.read_so_far..];
            let count = rest.len().min(into.len());
            into[..count].copy_from_slice(&rest[..count]);
            self.read_so_far += count;
            return Ok(count);
        }
        self.input = Input::Reading;
        let count = self.take_input(into)?;
        if let Some(keyed) = &mut self.keyed {
            keyed.fingerprint.read(&into[..count]);
        }
        Ok(count)
    }

    fn collect_input(&mut self) -> Result<Body, i32> {
        let body = self.collect()?;
        if let Some(keyed) = &mut self.keyed {
            keyed.fingerprint.read_whole(body.bytes());
        }
        Ok(body)
    }

    fn collect(&self) -> Result<Body, i32> {
        let most = usize::try_from(self.runner.limits().body_bytes).unwrap_or(usize::MAX);
        let buffers = self.runner.buffers();
        let mut body = buffers.with_room(0).ok_or(abi::DZ_E_TOO_LARGE)?;
        loop {
            // One byte more than what is there, so that there is always room to learn that it was the end.
            buffers.grow(&mut body, 1, most.saturating_add(1)).ok_or(abi::DZ_E_TOO_LARGE)?;
            match self.take_input(body.room())? {
                0 => return Ok(body),
                count => body.filled(count),
            }
        }
    }

    /// Waits for input, and returns credit for what it takes.
    fn take_input(&self, into: &mut [u8]) -> Result<usize, i32> {
        let inbox = &self.inbox;
        let taken = self.runner.wait_for(inbox, |mail| match mail.take(into) {
            Taken::Nothing => inbox.cancelled().map(Err),
            taken => Some(Ok(taken)),
        });
        match taken {
            Ok(Taken::Bytes { count, .. }) if inbox.direct.is_some() => {
                self.runner.took_input(inbox, count);
                Ok(count)
            }
            Ok(Taken::Bytes { count, credit }) => {
                self.runner.return_credit(self.id, credit).map_err(|_| abi::DZ_E_IO)?;
                Ok(count)
            }
            Ok(Taken::End(InputEnd::TooLarge)) => Err(abi::DZ_E_TOO_LARGE),
            Ok(Taken::End(InputEnd::Broken)) | Err(CancelReason::CallerGone) => Err(abi::DZ_E_CLOSED),
            Ok(_) => Ok(0),
            Err(CancelReason::Deadline) => Err(abi::DZ_E_CANCELLED),
        }
    }

    pub(crate) fn reply_content_type(&mut self, text: &str) -> Result<(), i32> {
        if matches!(self.output, Output::Streaming) || !ReplyHead::accepts(text) {
            return Err(abi::DZ_E_INVALID);
        }
        text.clone_into(&mut self.reply_type);
        Ok(())
    }

    /// A zeroed buffer that is the whole reply.
    pub(crate) fn reply_alloc(&mut self, len: usize) -> Result<*mut u8, i32> {
        if !matches!(self.output, Output::None) {
            return Err(abi::DZ_E_INVALID);
        }
        if len as u64 > self.runner.limits().reply_bytes {
            return Err(abi::DZ_E_TOO_LARGE);
        }
        let mut body = self.runner.buffers().zeroed(len).ok_or(abi::DZ_E_TOO_LARGE)?;
        let start = body.as_mut_ptr();
        self.output = Output::Whole(body);
        Ok(start)
    }

    /// The whole reply at once: copied, or the input itself if these bytes are of it and most of it.
    pub(crate) fn reply_bytes(&mut self, bytes: &[u8]) -> Result<(), i32> {
        if bytes.len() as u64 > self.runner.limits().reply_bytes {
            return Err(abi::DZ_E_TOO_LARGE);
        }
        if let (Output::None, Input::Whole(input)) = (&self.output, &self.input)
            && let Some(part) = input.range_of(bytes)
            && part.len() >= input.len() / 2
        {
            self.output = Output::OfInput(part);
            return Ok(());
        }
        self.reply_copy(bytes)
    }

    /// Sends the next bytes of a streamed reply, and waits while there is no credit.
    pub(crate) fn reply_write(&mut self, bytes: &[u8]) -> Result<(), i32> {
        let first = self.begin_stream()?;
        if let Some(keyed) = &mut self.keyed {
            keyed.stream(bytes)?;
        }
        let head = first.then_some(Begins::now(&self.reply_type));
        self.runner.send_with_credit(self.id, &self.inbox, head, bytes, self.access.commit_number())
    }

    /// The reply streams from now on; says whether it did not before, so that its head is due.
    fn begin_stream(&mut self) -> Result<bool, i32> {
        if matches!(self.output, Output::Whole(_) | Output::OfInput(_)) {
            return Err(abi::DZ_E_INVALID);
        }
        let first = matches!(self.output, Output::None);
        self.output = Output::Streaming;
        Ok(first)
    }

    pub(crate) fn fail(&mut self, kind: FailKind, message: String) {
        self.failure = Some((kind, message));
    }

    /// The object under a key.
    #[inline]
    pub(crate) fn value(&mut self, key: &[u8]) -> Result<Option<Value<'_>>, i32> {
        check_key(key)?;
        self.access.get(key).map_err(|error| self.trouble.of_state(self.runner, &error))
    }

    pub(crate) fn range(&mut self, key: &[u8], offset: u64, len: u64) -> Result<Option<&[u8]>, i32> {
        check_key(key)?;
        let part = self.access.get_range(key, offset, len);
        part.map_err(|error| self.trouble.of_state(self.runner, &error))
    }

    pub(crate) fn info(&self, key: &[u8]) -> Result<KeyInfo, i32> {
        check_key(key)?;
        self.access.info(key).ok_or(abi::DZ_E_NOT_FOUND)
    }

    pub(crate) fn keys<'s>(
        &'s self,
        prefix: &'s [u8],
        after: Option<&'s [u8]>,
        visit: impl FnMut(&'s [u8], KeyInfo) -> ControlFlow<()>,
    ) {
        self.access.keys(prefix, after, visit);
    }

    pub(crate) fn commit_number(&self) -> u64 {
        self.access.commit_number()
    }

    fn transaction(&mut self) -> Result<&mut Transaction, i32> {
        match &mut self.access {
            Access::Write(transaction) => Ok(transaction),
            Access::Read(_) => Err(abi::DZ_E_READ_ONLY),
        }
    }

    /// Does something to the transaction.
    fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Transaction) -> Result<T, StateError>,
    ) -> Result<T, i32> {
        let result = change(self.transaction()?);
        result.map_err(|error| self.trouble.of_state(self.runner, &error))
    }

    pub(crate) fn put(&mut self, key: &[u8], fingerprint: u64, value: &[u8]) -> i32 {
        status_of(self.change(|transaction| transaction.put(key, fingerprint, value)))
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> i32 {
        match self.change(|transaction| transaction.delete(key)) {
            Ok(false) => abi::DZ_E_NOT_FOUND,
            result => status_of(result.map(|_| ())),
        }
    }

    /// Where the copy of an object that is to be changed lies.
    pub(crate) fn update(&mut self, key: &[u8]) -> Result<(*mut u8, usize), i32> {
        check_key(key)?;
        let copy = self.change(|transaction| {
            transaction.update(key).map(|copy| copy.map(|copy| (copy.as_mut_ptr(), copy.len())))
        })?;
        copy.ok_or(abi::DZ_E_NOT_FOUND)
    }

    pub(crate) fn watch(&mut self, key: &[u8]) -> i32 {
        if let Err(status) = check_key(key) {
            return status;
        }
        // What the object is does not matter, so neither does it that it may be damaged.
        status_of(self.change(|transaction| transaction.get_for_update(key).map(|_| ()).or(Ok(()))))
    }

    pub(crate) fn begin_savepoint(&mut self) -> Result<u64, i32> {
        let savepoint = self.transaction()?.begin_savepoint();
        let id = self.next_savepoint;
        self.next_savepoint += 1;
        self.savepoints.push((id, savepoint));
        Ok(id)
    }

    /// Ends a savepoint and those begun in it.
    pub(crate) fn end_savepoint(&mut self, id: u64, keep: bool) -> i32 {
        if let Err(status) = self.transaction() {
            return status;
        }
        let Some(at) = self.savepoints.iter().position(|(open, _)| *open == id) else {
            return abi::DZ_E_INVALID;
        };
        let savepoint = self.savepoints[at].1;
        self.savepoints.truncate(at);
        status_of(self.change(|transaction| {
            if keep { transaction.release(savepoint) } else { transaction.rollback(savepoint) }
        }))
    }

    /// Commits what there is so far, for a function that goes on. With a key it is written down that the call has begun, so that nobody
    /// runs it from the start over what it has committed, whatever becomes of this process.
    pub(crate) fn commit_and_go_on(&mut self) -> Result<u64, i32> {
        self.remember_begun()?;
        let number = self.commit()?;
        if let Some(keyed) = &mut self.keyed {
            keyed.begun |= self.committed;
        }
        Ok(number)
    }

    fn remember_begun(&mut self) -> Result<(), i32> {
        let (Some(keyed), Access::Write(transaction)) = (&self.keyed, &self.access) else { return Ok(()) };
        if keyed.begun || transaction.is_unchanged() {
            return Ok(());
        }
        let (key, of) = (keyed.key.clone(), keyed.fingerprint.identity());
        self.remember(&key, &Record { of, end: End::Begun }.encode())
    }

    /// Remembers something under the call's key with the next commit.
    fn remember(&mut self, key: &str, record: &[u8]) -> Result<(), i32> {
        if !self.runner.has_room_for_reply(key, record.len()) {
            let most = self.runner.most_replies_bytes();
            let message = format!(
                "remembered replies take {most} bytes of the state, as much as they may: a quarter of `state`; call without an \
                 idempotency key, or again when some have expired (`remember`)"
            );
            self.failure = Some((FailKind::Quota, message));
            return Err(abi::DZ_E_QUOTA);
        }
        let reply = Reply { expires_ms: self.runner.expires_ms(), reply: record };
        self.change(|transaction| transaction.remember_reply(key.as_bytes(), reply))
    }

    /// Commits what there is so far.
    pub(crate) fn commit(&mut self) -> Result<u64, i32> {
        let Access::Write(transaction) = &mut self.access else { return Err(abi::DZ_E_READ_ONLY) };
        let before = transaction.commit_number();
        match self.runner.commit(transaction, &self.inbox) {
            Ok(number) => {
                self.committed |= number != before;
                self.savepoints.clear();
                Ok(number)
            }
            Err(error) => {
                let status = self.trouble.of_commit(self.runner, &error);
                // What could not be written may have been written all the same.
                self.committed |= status == abi::DZ_E_IO;
                Err(status)
            }
        }
    }

    /// The same, and lets go of everything that the transaction has handed out: for functions of ours, which keep nothing.
    pub(crate) fn commit_and_let_go(&mut self) -> Result<u64, i32> {
        let number = self.commit()?;
        // The turn of the old transaction ends before the new one takes it.
        self.access = Access::Read(self.runner.engine().snapshot());
        self.access = Access::Write(self.runner.engine().begin(denizen_engine::Access::Exclusive));
        Ok(number)
    }

    pub(crate) fn wait_commit(&mut self, seq: u64, level: Durability) -> i32 {
        let synced = self.runner.wait_durable(seq, level);
        status_of(synced.map_err(|error| self.trouble.of_state(self.runner, &error)))
    }

    /// Captures the files.
    pub(crate) fn sync_files(&mut self) -> i32 {
        if let Err(status) = self.transaction() {
            return status;
        }
        match files::capture(self.runner, &self.inbox) {
            Ok(_) => abi::DZ_OK,
            Err(error) => self.trouble.of_files(self.runner, &error),
        }
    }

    /// What went wrong with the state last.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.trouble.reason()
    }

    /// The whole input, taken out of the invocation.
    pub(crate) fn take_whole_input(&mut self) -> Result<Body, i32> {
        self.input()?;
        match std::mem::replace(&mut self.input, Input::Reading) {
            Input::Whole(body) => Ok(body),
            Input::Stream | Input::Reading => Err(abi::DZ_E_INVALID),
        }
    }

    pub(crate) fn give_back(&self, body: Body) {
        self.runner.give_back(body);
    }

    /// A whole reply.
    pub(crate) fn reply_copy(&mut self, bytes: &[u8]) -> Result<(), i32> {
        if !matches!(self.output, Output::None) {
            return Err(abi::DZ_E_INVALID);
        }
        let mut body = self.runner.buffers().with_room(bytes.len()).ok_or(abi::DZ_E_TOO_LARGE)?;
        body.push(bytes);
        self.output = Output::Whole(body);
        Ok(())
    }

    /// The value of an object as the reply: copied if it has at most `whole` bytes, sent from where it lies otherwise.
    pub(crate) fn reply_value(&mut self, key: &[u8], whole: usize) -> Result<(), i32> {
        let len = self.info(key)?.len;
        if len > whole as u64 {
            return self.write_value(key);
        }
        let value = self.value(key)?.ok_or(abi::DZ_E_NOT_FOUND)?;
        let bytes = value.bytes.to_vec();
        self.reply_copy(&bytes)
    }

    /// Streams the value of an object from where it lies.
    pub(crate) fn write_value(&mut self, key: &[u8]) -> Result<(), i32> {
        let first = self.begin_stream()?;
        let head = first.then_some(Begins::now(&self.reply_type));
        let value = self.access.get(key).map_err(|error| self.trouble.of_state(self.runner, &error))?;
        let bytes = value.ok_or(abi::DZ_E_NOT_FOUND)?.bytes;
        self.runner.send_with_credit(self.id, &self.inbox, head, bytes, self.access.commit_number())
    }

    /// The function returned: commits, or forgets what it wrote.
    pub(crate) fn end(mut self, status: i32) -> Ended {
        if status != abi::DZ_OK {
            return self.end_failed(status);
        }
        // What it recorded counts only if it failed.
        self.failure = None;
        let ended = match &self.access {
            Access::Write(_) if self.inbox.cancelled() == Some(CancelReason::Deadline) => {
                Err(abi::DZ_E_CANCELLED)
            }
            _ if self.keyed.is_some() => self.commit_with_reply(),
            Access::Read(snapshot) => Ok(snapshot.commit_number()),
            Access::Write(_) => self.commit(),
        };
        match ended {
            Ok(commit) => Ended::Done(self.end_well(commit)),
            Err(status) => self.end_failed(status),
        }
    }

    fn end_well(mut self, commit: u64) -> Outcome {
        if let Output::OfInput(part) = &self.output
            && let Input::Whole(body) = std::mem::replace(&mut self.input, Input::Reading)
        {
            self.output = Output::Whole(body.only(part.clone()));
        }
        self.give_input_back();
        let body = match self.output {
            Output::Streaming => return Outcome::StreamEnd { commit },
            Output::Whole(body) => Some(body),
            Output::None | Output::OfInput(_) => None,
        };
        Outcome::Reply { body, content_type: self.reply_type, commit, replayed: false }
    }

    /// Commits what was written and the reply, which is remembered by that. Also where nothing was written.
    fn commit_with_reply(&mut self) -> Result<u64, i32> {
        let Some(keyed) = self.keyed.take() else { return self.commit() };
        let committed = self.commit_reply_of(&keyed);
        self.keyed = Some(keyed);
        committed
    }

    fn commit_reply_of(&mut self, keyed: &Keyed) -> Result<u64, i32> {
        let body = match (&self.output, &self.input) {
            (Output::Whole(body), _) => body.bytes(),
            (Output::OfInput(part), Input::Whole(input)) => &input.bytes()[part.clone()],
            (Output::Streaming, _) => &keyed.streamed,
            (Output::None | Output::OfInput(_), _) => &[],
        };
        if keyed.overflowed || body.len() > MAX_REMEMBERED {
            self.failure = Some(too_long_to_remember());
            return Err(abi::DZ_E_TOO_LARGE);
        }
        let end = End::Replied { content_type: &self.reply_type, body };
        let record = Record { of: keyed.fingerprint.identity(), end }.encode();
        if let Access::Read(_) = self.access {
            self.access = Access::Write(self.runner.engine().begin(Turn::Concurrent));
        }
        self.remember(&keyed.key, &record)?;
        self.commit()
    }

    /// The call has failed after a commit of its own: nobody is to run it again.
    fn remember_failure(&mut self, failure: &Failure) {
        let (Some(keyed), Access::Write(transaction)) = (&self.keyed, &mut self.access) else { return };
        let Ok(json) = serde_json::to_vec(failure) else { return };
        let record = Record { of: keyed.fingerprint.identity(), end: End::Failed(&json) }.encode();
        let reply = Reply { expires_ms: self.runner.expires_ms(), reply: &record };
        transaction.abort();
        if let Err(error) = transaction.remember_reply(keyed.key.as_bytes(), reply) {
            return self.runner.say_forgotten(&self.invocation, &error);
        }
        if let Err(error) = self.runner.commit(transaction, &self.inbox) {
            self.runner.say_forgotten(&self.invocation, &error);
            self.trouble.of_commit(self.runner, &error);
        }
    }

    /// Answers as an earlier call with the same key was answered, if it was the same call.
    pub(crate) fn replay(mut self, known: &Snapshot) -> Outcome {
        let failed = |failure| Outcome::Failed { failure, commit: self.runner.last_commit() };
        let key = self.keyed.as_ref().map(|keyed| keyed.key.clone()).unwrap_or_default();
        let damaged = |why: &str| {
            let message =
                format!("what is remembered under the idempotency key {key:?} cannot be read: {why}");
            failed(Failure::unstarted(FailKind::StateCorrupt, message))
        };
        let remembered = match known.remembered(key.as_bytes()) {
            Ok(remembered) => remembered,
            Err(error) => {
                self.trouble.of_state(self.runner, &error);
                return damaged(&error.to_string());
            }
        };
        let record = remembered.and_then(|found| Some((Record::decode(found.reply.reply)?, found.commit)));
        let Some((record, commit)) = record else { return damaged("it is malformed") };
        match self.is_same(&record.of) {
            Ok(true) => {}
            Ok(false) => {
                let message = format!(
                    "the idempotency key {key:?} stands for an earlier call, of another function or with another input"
                );
                return failed(Failure::unstarted(FailKind::KeyReused, message));
            }
            Err(status) => {
                let (kind, message) = self.cause_of(status);
                return failed(Failure::unstarted(kind, message));
            }
        }
        self.give_input_back();
        match record.end {
            End::Begun => {
                let message = format!(
                    "an earlier call with the idempotency key {key:?} committed a part of its work, up to commit {commit} at least, and \
                     its process ended before the call did"
                );
                failed(Failure {
                    replayed: true,
                    ..Failure::of_function(FailKind::Interrupted, message, true)
                })
            }
            End::Failed(json) => match serde_json::from_slice::<Failure>(json) {
                Ok(failure) => failed(Failure { replayed: true, ..failure }),
                Err(error) => damaged(&error.to_string()),
            },
            End::Replied { content_type, body } => {
                let Some(mut copy) = self.runner.buffers().with_room(body.len()) else {
                    return failed(Failure::unstarted(
                        FailKind::TooLarge,
                        "the process has no memory for the reply",
                    ));
                };
                copy.push(body);
                let content_type = content_type.to_owned();
                Outcome::Reply { body: Some(copy), content_type, commit, replayed: true }
            }
        }
    }

    /// Whether this is the call that is remembered. Of an input that streams, as much is read as the earlier one has read.
    fn is_same(&mut self, earlier: &Identity) -> Result<bool, i32> {
        let Some(keyed) = &self.keyed else { return Ok(false) };
        let call = keyed.fingerprint.call;
        if let Input::Whole(body) = &self.input {
            return Ok(earlier.is_of(call, body.bytes()));
        }
        if call != earlier.call {
            return Ok(false);
        }
        let mut buffer = vec![0; INPUT_PIECE];
        loop {
            let read = self.keyed.as_ref().map_or(0, |keyed| keyed.fingerprint.len);
            let left = earlier.len.saturating_sub(read);
            if left == 0 && !earlier.ended {
                break;
            }
            // One byte more than there was, to learn that it was the end.
            let wanted = usize::try_from(left).unwrap_or(INPUT_PIECE).clamp(1, INPUT_PIECE);
            if self.input_read(&mut buffer[..wanted])? == 0 || left == 0 {
                break;
            }
        }
        Ok(self.keyed.as_ref().is_some_and(|keyed| keyed.fingerprint.identity() == *earlier))
    }

    fn end_failed(mut self, status: i32) -> Ended {
        if let Output::Whole(body) = self.output {
            self.runner.give_back(body);
            self.output = Output::None;
        }
        if self.may_run_again() {
            return Ended::Again(self.into_call());
        }
        self.give_input_back();
        let (kind, message) = self.cause_of(status);
        let failure = Failure::of_function(kind, message, self.committed);
        if self.committed && kind != FailKind::StoreBroken {
            self.remember_failure(&failure);
        }
        let commit = self.access.commit_number();
        Ended::Done(Outcome::Failed { failure, commit })
    }

    /// Nothing of it was seen by anybody, and nothing of its input is lost.
    fn may_run_again(&self) -> bool {
        self.may_rerun
            && self.trouble.conflicted()
            && !self.committed
            && !matches!(self.output, Output::Streaming)
            && !matches!(self.input, Input::Reading)
            && self.inbox.cancelled().is_none()
    }

    fn into_call(self) -> Call {
        Call {
            id: self.id,
            function: self.function,
            inbox: self.inbox,
            input: match self.input {
                Input::Whole(body) => Some(body),
                Input::Stream | Input::Reading => None,
            },
            content_type: self.content_type,
            invocation: self.invocation,
            wanted: self.wanted,
            key: self.keyed.map(|keyed| keyed.key),
            known: None,
        }
    }

    /// What the function recorded; else what the state said, if that is what it returned; else the bare number.
    fn cause_of(&mut self, status: i32) -> (FailKind, String) {
        if self.keyed.as_ref().is_some_and(|keyed| keyed.overflowed) {
            // The function knows no more than that it could not write.
            return too_long_to_remember();
        }
        let cancelled = self.inbox.cancelled();
        match (self.failure.take(), self.trouble.take()) {
            // The function may have no word for it, and this process will not serve another call.
            (recorded, Some(trouble)) if trouble.kind == FailKind::StoreBroken => {
                let why = trouble.why;
                (trouble.kind, recorded.map_or(why.clone(), |(_, message)| format!("{message} ({why})")))
            }
            // The ABI has one kind for a full quota and a full disk.
            (Some((FailKind::Quota, message)), Some(trouble)) if trouble.kind == FailKind::StoreFull => {
                (trouble.kind, format!("{message} ({})", trouble.why))
            }
            (Some((FailKind::Cancelled, message)), _) if cancelled == Some(CancelReason::Deadline) => {
                (FailKind::Deadline, message)
            }
            (Some(recorded), _) => recorded,
            (None, Some(trouble)) if trouble.status == status => (trouble.kind, trouble.why),
            (None, _) if status == abi::DZ_E_CANCELLED || status == abi::DZ_E_CLOSED => match cancelled {
                Some(CancelReason::Deadline) => (FailKind::Deadline, "the deadline passed".into()),
                Some(CancelReason::CallerGone) => (FailKind::Cancelled, "the caller went away".into()),
                None => (FailKind::Failed, format!("function returned {status}")),
            },
            (None, _) => (FailKind::Failed, format!("function returned {status}")),
        }
    }

    fn give_input_back(&mut self) {
        if let Input::Whole(body) = std::mem::replace(&mut self.input, Input::Reading) {
            self.runner.give_back(body);
        }
    }
}

fn too_long_to_remember() -> (FailKind, String) {
    let message =
        format!("the reply of a call with an idempotency key may have at most {MAX_REMEMBERED} bytes");
    (FailKind::TooLarge, message)
}

/// Whether these bytes can be a key at all.
pub(crate) fn check_key(key: &[u8]) -> Result<(), i32> {
    match key.len() {
        0 => Err(abi::DZ_E_INVALID),
        len if len > MAX_KEY_LEN => Err(abi::DZ_E_TOO_LARGE),
        _ => Ok(()),
    }
}

pub(crate) fn status_of(result: Result<(), i32>) -> i32 {
    result.err().unwrap_or(abi::DZ_OK)
}
