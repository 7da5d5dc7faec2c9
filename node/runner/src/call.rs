//! One invocation: what it was asked, what it has done so far, and how it ended.
//!
//! A [`Call`] waits and travels between threads. An [`Active`] exists only while its function runs, on the stack of the thread that
//! runs it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use denizen_abi as abi;
use denizen_state::{Reader, StateError, Transaction, Value};
use denizen_wire::{CancelReason, FailKind, Failure, ReplyHead};

use crate::buffers::Body;
use crate::declare::Function;
use crate::gate::Mode;
use crate::inbox::{Inbox, InputEnd, Taken};
use crate::serve::Runner;

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
}

impl Call {
    pub(crate) fn mode(&self) -> Mode {
        self.function.mode()
    }
}

/// The state as an invocation may use it.
#[derive(Debug)]
pub(crate) enum Access<'e> {
    Write(Transaction<'e>),
    Read(Reader<'e>),
}

impl Access<'_> {
    pub(crate) fn get(&self, key: &[u8]) -> Option<Value<'_>> {
        match self {
            Access::Write(transaction) => transaction.get(key),
            Access::Read(reader) => reader.get(key),
        }
    }

    pub(crate) fn scan<'s>(
        &'s self,
        prefix: &'s [u8],
        after: Option<&'s [u8]>,
        visit: impl FnMut(&'s [u8], Value<'s>) -> ControlFlow<()>,
    ) {
        match self {
            Access::Write(transaction) => transaction.scan(prefix, after, visit),
            Access::Read(reader) => reader.scan(prefix, after, visit),
        }
    }

    pub(crate) fn commit_number(&self) -> u64 {
        match self {
            Access::Write(transaction) => transaction.commit_number(),
            Access::Read(reader) => reader.commit_number(),
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
    Streaming,
}

/// An invocation whose function runs.
#[derive(Debug)]
pub(crate) struct Active<'e> {
    pub(crate) runner: &'static Runner,
    pub(crate) id: u64,
    pub(crate) function: &'static Function,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) content_type: Box<str>,
    pub(crate) invocation: Box<str>,
    pub(crate) access: Access<'e>,
    input: Input,
    read_so_far: usize,
    reply_type: String,
    output: Output,
    failure: Option<(FailKind, String)>,
    /// The last thing that went wrong with the state, in more detail than a status has.
    state_error: Option<(i32, FailKind, String)>,
    committed: bool,
}

/// How an invocation ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Reply { body: Option<Body>, content_type: String, commit: u64 },
    StreamEnd { commit: u64 },
    Failed { failure: Failure, commit: u64 },
}

impl<'e> Active<'e> {
    pub(crate) fn new(runner: &'static Runner, call: Call, access: Access<'e>) -> Active<'e> {
        Active {
            runner,
            id: call.id,
            function: call.function,
            inbox: call.inbox,
            content_type: call.content_type,
            invocation: call.invocation,
            access,
            input: call.input.map_or(Input::Stream, Input::Whole),
            read_so_far: 0,
            reply_type: String::new(),
            output: Output::None,
            failure: None,
            state_error: None,
            committed: false,
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
        self.take_input(into)
    }

    fn collect_input(&mut self) -> Result<Body, i32> {
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

    /// Sends the next bytes of a streamed reply, and waits while there is no credit.
    pub(crate) fn reply_write(&mut self, bytes: &[u8]) -> Result<(), i32> {
        if matches!(self.output, Output::Whole(_)) {
            return Err(abi::DZ_E_INVALID);
        }
        let first = matches!(self.output, Output::None);
        self.output = Output::Streaming;
        let head = first.then_some(self.reply_type.as_str());
        self.runner.send_with_credit(self.id, &self.inbox, head, bytes, self.access.commit_number())
    }

    pub(crate) fn fail(&mut self, kind: FailKind, message: String) {
        self.failure = Some((kind, message));
    }

    pub(crate) fn put(&mut self, key: &[u8], fingerprint: u64, value: &[u8]) -> i32 {
        let Access::Write(transaction) = &mut self.access else { return abi::DZ_E_READ_ONLY };
        let result = transaction.put(key, fingerprint, value);
        self.status_of(result)
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> i32 {
        let Access::Write(transaction) = &mut self.access else { return abi::DZ_E_READ_ONLY };
        match transaction.delete(key) {
            Ok(false) => abi::DZ_E_NOT_FOUND,
            result => self.status_of(result.map(|_| ())),
        }
    }

    pub(crate) fn commit(&mut self) -> Result<u64, i32> {
        let Access::Write(transaction) = &mut self.access else { return Err(abi::DZ_E_READ_ONLY) };
        let before = transaction.commit_number();
        match transaction.commit() {
            Ok(number) => {
                self.committed |= number != before;
                Ok(number)
            }
            Err(error) => Err(self.status_of(Err(error))),
        }
    }

    fn status_of(&mut self, result: Result<(), StateError>) -> i32 {
        let Err(error) = result else { return abi::DZ_OK };
        let (status, kind) = classify(&error);
        self.state_error = Some((status, kind, error.to_string()));
        status
    }

    /// The function returned: commits, or forgets what it wrote.
    pub(crate) fn end(mut self, status: i32) -> Outcome {
        if status != abi::DZ_OK {
            return self.end_failed(status);
        }
        match self.commit_or_last() {
            Ok(commit) => self.end_well(commit),
            Err(failure) => Outcome::Failed { failure, commit: self.access.commit_number() },
        }
    }

    fn commit_or_last(&mut self) -> Result<u64, Failure> {
        let committed = self.committed;
        match &mut self.access {
            Access::Read(reader) => Ok(reader.commit_number()),
            Access::Write(transaction) => transaction
                .commit()
                .map_err(|error| Failure::of_function(classify(&error).1, error.to_string(), committed)),
        }
    }

    fn end_well(mut self, commit: u64) -> Outcome {
        self.give_input_back();
        let body = match self.output {
            Output::Streaming => return Outcome::StreamEnd { commit },
            Output::Whole(body) => Some(body),
            Output::None => None,
        };
        Outcome::Reply { body, content_type: self.reply_type, commit }
    }

    fn end_failed(mut self, status: i32) -> Outcome {
        self.give_input_back();
        let (kind, message) = self.cause_of(status);
        let commit = self.access.commit_number();
        if let Output::Whole(body) = self.output {
            self.runner.buffers().give_back(body);
        }
        Outcome::Failed { failure: Failure::of_function(kind, message, self.committed), commit }
    }

    /// What the function recorded; else what the state said, if that is what it returned; else the bare number.
    fn cause_of(&mut self, status: i32) -> (FailKind, String) {
        let cancelled = self.inbox.cancelled();
        match (self.failure.take(), self.state_error.take()) {
            // The ABI has one status for a full quota and a full disk.
            (Some((FailKind::Quota, message)), Some((_, FailKind::StoreFull, why))) => {
                (FailKind::StoreFull, format!("{message} ({why})"))
            }
            (Some((FailKind::Cancelled, message)), _) if cancelled == Some(CancelReason::Deadline) => {
                (FailKind::Deadline, message)
            }
            (Some(recorded), _) => recorded,
            (None, Some((seen, kind, why))) if seen == status => (kind, why),
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
            self.runner.buffers().give_back(body);
        }
    }
}

/// What a state error is to the function, and to the caller.
fn classify(error: &StateError) -> (i32, FailKind) {
    match error {
        StateError::QuotaExceeded { .. } | StateError::LogFull => (abi::DZ_E_QUOTA, FailKind::Quota),
        StateError::NoSpace { .. } => (abi::DZ_E_QUOTA, FailKind::StoreFull),
        StateError::KeyEmpty => (abi::DZ_E_INVALID, FailKind::Failed),
        StateError::KeyTooLong { .. } => (abi::DZ_E_TOO_LARGE, FailKind::Failed),
        StateError::NoMemory { .. } => (abi::DZ_E_TOO_LARGE, FailKind::TooLarge),
        _ => (abi::DZ_E_IO, FailKind::StoreBroken),
    }
}
