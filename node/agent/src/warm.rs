//! A sandbox that has loaded an image before it is known which process it becomes: what is left of a first call is the claim and the
//! state.
//!
//! The plugin's constructors and its initialisation have run in it, behind both filters and under the limits of the image: the same code
//! of the same tenant as in every process of the image, and it is told of no process then. Not for images with files: theirs are there
//! before the plugin is loaded.

use std::os::fd::AsFd;
use std::time::Instant;

use denizen_image::ImageId;
use denizen_sandbox::Sandbox;
use denizen_sched::AppName;
use denizen_wire::{Declarations, FrameReader, Kind as Frame, Sender};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::deployed::Deployed;
use crate::problem::{Kind, Problem};
use crate::process::{LOAD_LIMIT, assign, assignment};

/// Lines that a plugin may log while it is loaded, before it is given up.
const LINES_LIMIT: usize = 256;

/// A sandbox, and what it has said.
#[derive(Debug)]
pub(crate) struct Warm {
    pub(crate) sandbox: Sandbox,
    pub(crate) prepared: Prepared,
}

/// What a sandbox has said before its process was known.
#[derive(Debug)]
pub(crate) struct Prepared {
    app: AppName,
    image: ImageId,
    pub(crate) declarations: Declarations,
    /// What its plugin logged.
    pub(crate) lines: Vec<String>,
    /// What was received and not looked at.
    pub(crate) frames: FrameReader,
}

impl Warm {
    /// Whether sandboxes of an image can be prepared at all.
    pub(crate) fn suits(image: &Deployed) -> bool {
        image.files_bytes() == 0
    }

    /// Has a sandbox load an image. Blocks for as long as that takes.
    ///
    /// # Errors
    /// What is wrong with the plugin, or with the sandbox, which is gone then.
    pub(crate) fn load(
        sandbox: Sandbox,
        app: &AppName,
        image: &Deployed,
        ring: bool,
    ) -> Result<Warm, Problem> {
        let mut assignment = assignment(app.as_str(), "", 0, image);
        (assignment.probe, assignment.prepare) = (false, true);
        assignment.ring = ring && sandbox.ring.is_some();
        assign(&sandbox, &assignment, image.manifest.limits.cpu, &[], &[])?;
        let (declarations, lines, frames) = listen(&sandbox)?;
        let prepared = Prepared { app: app.clone(), image: image.id, declarations, lines, frames };
        Ok(Warm { sandbox, prepared })
    }

    /// Whose it is.
    pub(crate) fn app(&self) -> &AppName {
        &self.prepared.app
    }

    /// Whether it can become a process of this application.
    pub(crate) fn is_of(&self, app: &AppName, image: ImageId) -> bool {
        self.prepared.image == image && self.prepared.app == *app
    }
}

/// Listens until the plugin has declared its functions.
fn listen(sandbox: &Sandbox) -> Result<(Declarations, Vec<String>, FrameReader), Problem> {
    let broken = |why: String| Problem::new(Kind::SandboxMisbehaved, why);
    let (mut frames, mut lines) = (FrameReader::new(Sender::Runner), Vec::new());
    let until = Instant::now() + LOAD_LIMIT;
    loop {
        match frames.frame().map_err(|error| broken(error.to_string()))? {
            Some(frame) => match frame.header.kind {
                Frame::Ready => {
                    let declarations = frame.document().map_err(|error| broken(error.to_string()))?;
                    return Ok((declarations, lines, frames));
                }
                Frame::LogLine if lines.len() < LINES_LIMIT => {
                    lines.push(String::from_utf8_lossy(frame.payload).into_owned());
                }
                other => return Err(broken(format!("a {other:?} frame came while an image was loaded"))),
            },
            None => {
                let count = receive(sandbox.answers.as_fd(), frames.space(), until);
                match count.map_err(|error| broken(format!("a sandbox loaded no image: {error}")))? {
                    0 => return Err(broken("a sandbox died while it loaded an image".to_owned())),
                    count => frames.filled(count),
                }
            }
        }
    }
}

/// Receives something, at the latest by `until`.
fn receive(
    socket: std::os::fd::BorrowedFd<'_>,
    into: &mut [u8],
    until: Instant,
) -> rustix::io::Result<usize> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT);
        }
        set_socket_timeout(socket, Timeout::Recv, Some(left))?;
        match rustix::net::recv(socket, &mut *into, RecvFlags::empty()) {
            Ok((count, _)) => return Ok(count),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
    }
}
