//! Answers on the wire: whole replies, streamed ones, failures; cut into frames, paid for with credit.

use std::io::IoSlice;

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

impl Runner {
    /// Sends the end of a call.
    pub(crate) fn answer(&'static self, id: u64, inbox: &Inbox, outcome: Outcome) -> Result<(), Gone> {
        match outcome {
            Outcome::Reply { body, content_type, commit } => {
                let sent = self.whole_reply(
                    id,
                    inbox,
                    &content_type,
                    body.as_ref().map_or(&[], Body::bytes),
                    commit,
                );
                body.into_iter().for_each(|body| self.buffers().give_back(body));
                sent
            }
            Outcome::StreamEnd { commit } => self.send_part(id, None, &[], true, commit),
            Outcome::Failed { failure, commit } => self.send_failure(id, &failure, commit),
        }
    }

    fn whole_reply(
        &'static self,
        id: u64,
        inbox: &Inbox,
        content_type: &str,
        body: &[u8],
        commit: u64,
    ) -> Result<(), Gone> {
        if body.len() <= WINDOW {
            return self.send_part(id, Some(content_type), body, true, commit);
        }
        let (most, last) = body.split_at(body.len() - 1);
        // All but the last byte first: the end flag goes on a frame that is known to be the last.
        let result = self
            .send_with_credit(id, inbox, Some(content_type), most, commit)
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
        inbox: &Inbox,
        mut head: Option<&str>,
        mut bytes: &[u8],
        commit: u64,
    ) -> Result<(), i32> {
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
        let node = self.engine().durable() >= commit;
        u32::from(if node { Durability::Node.code() } else { Durability::Process.code() })
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
        head: Option<&str>,
        bytes: &[u8],
        end: bool,
        commit: u64,
    ) -> Result<(), Gone> {
        debug_assert!(bytes.len() <= WINDOW, "more than a window at once");
        let reached = self.reached(commit);
        let mut head_bytes = Vec::new();
        if let Some(content_type) = head {
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
