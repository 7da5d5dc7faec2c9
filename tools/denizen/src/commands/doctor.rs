//! `denizen doctor`: what this machine offers, each finding with what follows from it and what to do.

use denizen_client::Blame;
use denizen_sandbox::probe::{self, Finding, Status};
use serde_json::json;

use crate::{
    failure::Failure,
    terminal::{Paint, Terminal},
};

pub(crate) fn run(terminal: &Terminal) -> Result<(), Failure> {
    let findings = probe::examine();
    let fatal = count(&findings, Status::Fail);
    if terminal.json {
        terminal.document(&json!({ "ok": fatal == 0, "findings": findings }))?;
    } else {
        terminal.raw(in_words(&findings, terminal.out).as_bytes())?;
        terminal.answer(format!("\n{}", verdict(&findings)))?;
    }
    if fatal == 0 { Ok(()) } else { Err(Failure::already_said(Blame::Host)) }
}

/// Says what keeps a node from running here, if anything does.
pub(crate) fn refuse_if_fatal(terminal: &Terminal) -> Result<(), Failure> {
    let mut findings = probe::examine();
    findings.retain(|finding| finding.status == Status::Fail);
    if findings.is_empty() {
        return Ok(());
    }
    if terminal.json {
        terminal.say(json!({ "error": { "title": "a node cannot run here", "blame": Blame::Host, "findings": findings } }));
        return Err(Failure::already_said(Blame::Host));
    }
    terminal.say(format!("{} a node cannot run on this machine yet\n", terminal.err.red("error:")));
    terminal.say(in_words(&findings, terminal.err));
    terminal.say("`denizen doctor` shows everything that was looked at");
    Err(Failure::already_said(Blame::Host))
}

fn in_words(findings: &[Finding], paint: Paint) -> String {
    let findings: Vec<(String, &Finding)> =
        findings.iter().map(|finding| (finding.name.replace('-', " "), finding)).collect();
    let width = findings.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, finding) in &findings {
        let mark = match finding.status {
            Status::Ok => paint.green("ok  "),
            Status::Warn => paint.yellow("warn"),
            Status::Fail => paint.red("FAIL"),
        };
        let gap = " ".repeat(width - name.chars().count());
        text.push_str(&format!("{mark}  {}{gap}  {}\n", paint.bold(name), finding.found));
        let margin = " ".repeat(width + 8);
        for (label, body) in [("so  ", &finding.consequence), ("do  ", &finding.remedy)] {
            if !body.is_empty() {
                text.push_str(&format!(
                    "{margin}{}{}\n",
                    paint.dim(label),
                    body.replace('\n', &format!("\n{margin}    "))
                ));
            }
        }
    }
    text
}

fn verdict(findings: &[Finding]) -> String {
    match (count(findings, Status::Fail), count(findings, Status::Warn)) {
        (0, 0) => "A node runs here, with every layer of isolation.".to_owned(),
        (0, _) => "A node runs here, with less than it could have: see the warnings.".to_owned(),
        _ => "A node cannot run here yet: see what failed.".to_owned(),
    }
}

fn count(findings: &[Finding], status: Status) -> usize {
    findings.iter().filter(|finding| finding.status == status).count()
}
