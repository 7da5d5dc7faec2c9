//! Answers on the wire: whole replies, streamed ones, failures; cut into frames, paid for with credit.

use std::io::IoSlice;
use std::sync::Arc;

use denizen_abi as abi;
use denizen_wire::{
    CancelReason, Durability, FailKind, Failure, HEADER_LEN, Header, Kind, MAX_FRAME_PAYLOAD, ReplyHead,
    WINDOW,
};

use crate::buffers::Body;
use crate::call::Outcome;
use crate::inbox::Inbox;
use crate::link::Gone;
use crate::serve::Runner;

/// A window of bytes, and a head in front of it, take this many frames at most.
const MAX_FRAMES: usize = WINDOW / MAX_FRAME_PAYLOAD + 2;

/// The head of a reply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begins<'a> {
    pub(crate) content_type: &'a str,
    /// It is remembered from an earlier call with the same idempotency key.
    pub(crate) replayed: bool,
}

impl<'a> Begins<'a> {
    /// Of a reply that a function gives now.
    pub(crate) fn now(content_type: &'a str) -> Begins<'a> {
        Begins { content_type, replayed: false }
    }
}

impl Runner {
    /// Sends the end of a call.
    pub(crate) fn answer(&'static self, id: u64, inbox: &Arc<Inbox>, outcome: Outcome) -> Result<(), Gone> {
        if let Some(ours) = &inbox.direct {
            self.answer_direct(inbox, ours, outcome);
            return Ok(());
        }
        match outcome {
            Outcome::Reply { body, content_type, commit, replayed } => {
                let sent = self.whole_reply(
                    id,
                    inbox,
                    Begins { content_type: &content_type, replayed },
                    body.as_ref().map_or(&[], Body::bytes),
                    commit,
                );
                body.into_iter().for_each(|body| self.give_back(body));
                sent
            }
            Outcome::StreamEnd { commit } => self.send_part(id, None, &[], true, commit),
            Outcome::Failed { failure, commit } => self.send_failure(id, &failure, commit),
        }
    }

    fn whole_reply(
        &'static self,
        id: u64,
        inbox: &Arc<Inbox>,
        head: Begins<'_>,
        body: &[u8],
        commit: u64,
    ) -> Result<(), Gone> {
        if body.len() <= WINDOW {
            return self.send_part(id, Some(head), body, true, commit);
        }
        let (most, last) = body.split_at(body.len() - 1);
        // All but the last byte first: the end flag goes on a frame that is known to be the last.
        let result = self
            .send_with_credit(id, inbox, Some(head), most, commit)
            .and_then(|()| self.credit_for(inbox, last.len()).map(|_| ()));
        match result {
            Ok(()) => self.send_part(id, None, last, true, commit),
            Err(abi::DZ_E_IO) => Err(Gone),
            Err(_) => {
                let failure =
                    Failure::of_function(FailKind::Cancelled, "nobody waits for the reply any more", true);
                self.send_failure(id, &failure, commit)
            }
        }
    }

    pub(crate) fn send_failure(&self, id: u64, failure: &Failure, commit: u64) -> Result<(), Gone> {
        let frame = failure.frame(id, commit).map_err(|_| Gone)?;
        self.link.send_frame(&frame)
    }

    /// Sends part of a reply that does not end here, waiting for credit. Errors are the ABI's.
    pub(crate) fn send_with_credit(
        &'static self,
        id: u64,
        inbox: &Arc<Inbox>,
        mut head: Option<Begins<'_>>,
        mut bytes: &[u8],
        commit: u64,
    ) -> Result<(), i32> {
        if let Some(ours) = &inbox.direct {
            return self.stream_direct(inbox, ours, head, bytes, commit);
        }
        while head.is_some() || !bytes.is_empty() {
            let count = self.credit_for(inbox, bytes.len())?;
            let (now, later) = bytes.split_at(count);
            self.send_part(id, head.take(), now, false, commit).map_err(|_| abi::DZ_E_IO)?;
            bytes = later;
        }
        Ok(())
    }

    /// How durable a commit is now, as reply frames say it.
    fn reached(&self, commit: u64) -> u32 {
        u32::from(self.level_of(commit).code())
    }

    /// How durable a commit is now.
    pub(crate) fn level_of(&self, commit: u64) -> Durability {
        if self.engine().durable() >= commit { Durability::Node } else { Durability::Process }
    }

    /// Waits for some credit, at most `most` bytes and at most a window.
    fn credit_for(&'static self, inbox: &Inbox, most: usize) -> Result<usize, i32> {
        let most = most.min(WINDOW);
        self.wait_for(inbox, |mail| match inbox.cancelled() {
            Some(CancelReason::Deadline) => Some(Err(abi::DZ_E_CANCELLED)),
            Some(CancelReason::CallerGone) => Some(Err(abi::DZ_E_CLOSED)),
            None if most == 0 => Some(Ok(0)),
            None => Some(mail.spend(most)).filter(|count| *count > 0).map(Ok),
        })
    }

    /// Sends up to a window of reply bytes, with one write. With a head it is the beginning of the reply.
    fn send_part(
        &self,
        id: u64,
        head: Option<Begins<'_>>,
        bytes: &[u8],
        end: bool,
        commit: u64,
    ) -> Result<(), Gone> {
        debug_assert!(bytes.len() <= WINDOW, "more than a window at once");
        let reached = self.reached(commit);
        let mut head_bytes = Vec::new();
        if let Some(Begins { content_type, .. }) = head {
            ReplyHead { content_type }.encode(&mut head_bytes).map_err(|_| Gone)?;
        }
        let mut headers = [[0; HEADER_LEN]; MAX_FRAMES];
        let mut cuts = [0; MAX_FRAMES + 1];
        let mut frames = 0;
        while frames == 0 || cuts[frames] < bytes.len() {
            let extra = if frames == 0 { head_bytes.len() } else { 0 };
            let next = bytes.len().min(cuts[frames] + MAX_FRAME_PAYLOAD - extra);
            let kind = if frames == 0 && head.is_some() { Kind::Reply } else { Kind::ReplyData };
            headers[frames] = Header { b: reached, c: commit, ..Header::new(kind, id) }
                .with_payload(extra + next - cuts[frames])
                .with_end(end && next == bytes.len())
                .with_replayed(frames == 0 && head.is_some_and(|head| head.replayed))
                .encode();
            frames += 1;
            cuts[frames] = next;
        }
        let mut pieces = [IoSlice::new(&[]); 3 * MAX_FRAMES];
        for frame in 0..frames {
            pieces[3 * frame] = IoSlice::new(&headers[frame]);
            pieces[3 * frame + 1] = IoSlice::new(if frame == 0 { &head_bytes } else { &[] });
            pieces[3 * frame + 2] = IoSlice::new(&bytes[cuts[frame]..cuts[frame + 1]]);
        }
        self.link.send(&mut pieces[..3 * frames])
    }
}
