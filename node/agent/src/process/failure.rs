//! From what a runner says went wrong to what a caller is told.

use denizen_sandbox::{Demise, DemiseKind, ExitCause, Phase};
use denizen_wire::problem::{self, Deadline, Said};
use denizen_wire::{EXIT_RING_SPOILED, Failure, LoadFailure, LoadFailureKind};

use crate::deployed::Deployed;
use crate::problem::{Kind, Problem};
use crate::process::invocation::Invocation;

/// The problem behind a `Fail` frame.
pub(crate) fn problem_of(failure: Failure, call: &Invocation, image: &Deployed) -> Problem {
    let message = short(failure.message);
    let limits = &image.manifest.limits;
    let said = Said::of(Failure { message, ..failure }, deadline_of(call, image), limits.state.bytes());
    let problem = Problem::new(said.kind, said.detail).retry(said.retry);
    let problem = if said.replayed { problem.with("replayed", true.into()) } else { problem };
    match said.data {
        Some(data) => problem.with("data", data),
        None => problem,
    }
}

fn deadline_of<'a>(call: &'a Invocation, image: &Deployed) -> Deadline<'a> {
    let limit = call.limit.get();
    let at_most = limit.map_or(image.manifest.limits.deadline, |limit| limit.image);
    let callers = limit.and_then(|limit| limit.caller).filter(|callers| *callers < at_most);
    Deadline { invocation: &call.name, at_most, callers }
}

/// What a caller whose deadline passed is told.
pub(crate) fn deadline_text(call: &Invocation, image: &Deployed) -> String {
    problem::deadline_text(deadline_of(call, image))
}

/// A text from a sandbox, cut: a runner keeps to this length, what took its place need not, and the scheduler stores it.
pub(crate) fn short(mut text: String) -> String {
    let end = text.len().min(Failure::MAX_MESSAGE);
    let end = (0..=end).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

/// The problem behind a plugin that was refused.
pub(crate) fn refused(failure: LoadFailure) -> Problem {
    let kind = match failure.kind {
        LoadFailureKind::Unreadable => Kind::PluginUnreadable,
        LoadFailureKind::WrongArchitecture => Kind::WrongArchitecture,
        LoadFailureKind::MissingSymbol => Kind::MissingSymbol,
        LoadFailureKind::AbiVersion => Kind::AbiVersion,
        LoadFailureKind::MissingLibrary => Kind::MissingLibrary,
        LoadFailureKind::InitFailed => Kind::InitFailed,
        LoadFailureKind::StateCorrupt => Kind::StateCorrupt,
        LoadFailureKind::StateFull => Kind::NoSpace,
        _ => Kind::HostFault,
    };
    let problem = Problem::new(kind, short(failure.message));
    if failure.remedy.is_empty() { problem } else { problem.remedy(short(failure.remedy)) }
}

/// How a sandbox died, from what it said and what the kernel says: a kind of problem, and a sentence.
pub(crate) fn verdict(exit: Option<ExitCause>, demise: Option<&Demise>) -> (Kind, String) {
    if exit == Some(ExitCause::OutOfMemory) {
        return (Kind::OutOfMemory, "the kernel ended the sandbox: it reached its memory limit".to_owned());
    }
    if let Some(demise) = demise {
        let kind = match &demise.kind {
            DemiseKind::StackOverflow => Kind::StackOverflow,
            DemiseKind::Segfault => Kind::SegmentationFault,
            DemiseKind::Abort => Kind::FunctionAborted,
            DemiseKind::OutOfMemory => Kind::OutOfMemory,
            DemiseKind::ForbiddenSyscall { .. } => Kind::ForbiddenSyscall,
            _ => Kind::FunctionCrashed,
        };
        return (kind, demise_text(demise));
    }
    match exit {
        Some(ExitCause::Exited(EXIT_RING_SPOILED)) => {
            let text = "the plugin spoiled the ring (descriptor 4) over which its process serves its callers";
            (Kind::RingSpoiled, text.to_owned())
        }
        Some(ExitCause::Exited(code)) => {
            (Kind::FunctionExited, format!("the sandbox exited with code {code}"))
        }
        Some(ExitCause::Signalled(signal)) => verdict_of_signal(signal),
        Some(ExitCause::SpawnerGone) => {
            (Kind::SandboxLost, "the spawner ended, and every sandbox with it".to_owned())
        }
        _ => (Kind::SandboxLost, "the sandbox ended, and the kernel does not say how".to_owned()),
    }
}

/// What a signal says by itself, where the sandbox had no last words: no handler was left, or none could run.
fn verdict_of_signal(signal: i32) -> (Kind, String) {
    let name = match signal {
        4 => "an illegal instruction",
        7 => "a bus error",
        8 => "an arithmetic error",
        11 => "a segmentation fault",
        31 => {
            let text = "a system call of another architecture, which no sandbox may make, ended the sandbox";
            return (Kind::ForbiddenSyscall, text.to_owned());
        }
        _ => return (Kind::SandboxLost, format!("signal {signal} from outside ended the sandbox")),
    };
    let kind = if signal == 11 { Kind::SegmentationFault } else { Kind::FunctionCrashed };
    (kind, format!("{name} (signal {signal}) ended the sandbox"))
}

/// The sentence was made on our side from the numbers on the page; only a newer sandbox crate could leave it out.
fn demise_text(demise: &Demise) -> String {
    let message = demise.message.trim();
    if message.is_empty() {
        format!("signal {} ended the sandbox", demise.signal)
    } else {
        message.to_owned()
    }
}

/// The problem behind a plugin that died while it was loaded.
pub(crate) fn died_loading(exit: Option<ExitCause>, demise: Option<&Demise>) -> Problem {
    let (kind, text) = verdict(exit, demise);
    let tenant = demise.is_none_or(|demise| demise.phase != Phase::Waiting);
    match kind {
        Kind::SandboxLost => Problem::new(Kind::SandboxUnavailable, text),
        _ if tenant => {
            Problem::new(Kind::InitCrashed, format!("the plugin died while it was loaded: {text}"))
        }
        _ => Problem::new(Kind::HostFault, format!("the sandbox died before it loaded the plugin: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demise(kind: DemiseKind) -> Demise {
        Demise { signal: 6, kind, phase: Phase::Sealed, invocation: 1, message: String::new() }
    }

    #[test]
    fn a_forbidden_system_call_is_named() {
        let mut demise = demise(DemiseKind::ForbiddenSyscall { nr: 41, name: "socket".into() });
        demise.message = "it called socket".to_owned();
        let (kind, text) = verdict(Some(ExitCause::Exited(159)), Some(&demise));
        assert_eq!(kind, Kind::ForbiddenSyscall);
        assert!(text.contains("socket"), "{text}");
        let problem = died_loading(None, Some(&demise));
        assert_eq!(problem.kind(), Kind::InitCrashed);
    }

    #[test]
    fn a_refusal_of_any_length_is_cut() {
        let endless = "\u{e9}".repeat(1 << 20);
        let failure = LoadFailure { kind: LoadFailureKind::Host, message: endless.clone(), remedy: endless };
        let json = refused(failure).to_json().to_string();
        assert!(json.len() < 3 * Failure::MAX_MESSAGE, "{} bytes would be stored", json.len());
    }

    #[test]
    fn the_kernels_word_on_memory_comes_before_the_sandboxs() {
        let demise = demise(DemiseKind::Abort);
        assert_eq!(verdict(Some(ExitCause::OutOfMemory), Some(&demise)).0, Kind::OutOfMemory);
        assert_eq!(verdict(Some(ExitCause::Signalled(9)), None).0, Kind::SandboxLost);
        assert_eq!(verdict(Some(ExitCause::Signalled(31)), None).0, Kind::ForbiddenSyscall);
        assert_eq!(verdict(Some(ExitCause::Signalled(11)), None).0, Kind::SegmentationFault);
        assert_eq!(died_loading(Some(ExitCause::Signalled(31)), None).kind(), Kind::InitCrashed);
        assert_eq!(verdict(Some(ExitCause::Exited(0)), None).0, Kind::FunctionExited);
        assert_eq!(verdict(Some(ExitCause::Exited(EXIT_RING_SPOILED)), None).0, Kind::RingSpoiled);
    }
}
