//! `denizen demo`: the whole of it in one command. A node in a directory that goes away, the example `counter` built and deployed, calls
//! and their answers, a process moved out and back with its count, and what it took.

use std::{
    env,
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use denizen_client::{Call, Input, Node, ReplyHead};
use denizen_image::build::Profile;
use serde_json::{Value, json};

use super::{doctor, image};
use crate::{
    cli,
    failure::Failure,
    host::Host,
    packing::Packed,
    place::{self, EXAMPLES, Place},
    settings::Settings,
    terminal::{Cell, Paint, Table, Terminal},
    units,
};

const WARM_CALLS: usize = 200;

pub(crate) fn run(terminal: &Terminal, typed: &cli::Demo) -> Result<(), Failure> {
    let began = Instant::now();
    let counter = example()?;
    doctor::refuse_if_fatal(terminal)?;
    let scratch = tempfile::Builder::new().prefix("denizen-demo-").tempdir().map_err(|error| {
        Failure::host("a temporary directory cannot be made")
            .because(&error)
            .remedy("set TMPDIR to one that this user can write to")
    })?;
    let scratch = Scratch { dir: scratch, keep: typed.keep };
    let host = Host::start(scratch.dir.path(), &Settings::for_demo())?;
    let shown = Demo { terminal, node: host.node()? }.show(&counter, scratch.dir.path(), began);
    host.stop();
    scratch.end(terminal);
    shown
}

/// The example's package, in the checkout that this is run from or was built in.
fn example() -> Result<PathBuf, Failure> {
    let here = env::current_dir().unwrap_or_default();
    let checkout = match Place::here()? {
        Place::Checkout(root) => Some(root),
        _ => place::checkout_around(&here),
    };
    checkout.map(|root| place::example(&root, EXAMPLES[0])).ok_or_else(|| {
        Failure::usage("the demo's example is in a checkout of Denizen, and this is none")
            .remedy("run it in a checkout; or make a package: denizen new hello && cd hello && denizen dev")
    })
}

/// The node's directory, for as long as the demo lasts.
struct Scratch {
    dir: tempfile::TempDir,
    keep: bool,
}

impl Scratch {
    fn end(self, terminal: &Terminal) {
        if self.keep {
            terminal.say(format!("The node's directory is kept: {}", self.dir.keep().display()));
        }
    }
}

struct Demo<'a> {
    terminal: &'a Terminal,
    node: Node,
}

/// One call's answer, and how long it took.
struct Answer {
    text: String,
    head: ReplyHead,
    took: Duration,
}

impl Demo<'_> {
    fn show(&self, counter: &Path, dir: &Path, began: Instant) -> Result<(), Failure> {
        self.step("1", "A node is up", &format!("http://{} on {}", self.node.address(), dir.display()));
        let deployed = self.deploy(counter)?;
        self.step("2", "An image is deployed", &deployed);

        let first = self.call("alice", r#"{"by":2}"#)?;
        self.step(
            "3",
            "The first call makes the process counter/alice, in a sandbox of its own",
            &format!("increment {{\"by\":2}}  →  {}   {}", self.strong(&first.text), self.facts(&first)),
        );
        let second = self.call("alice", r#"{"by":40}"#)?;
        self.step(
            "4",
            "The next call finds what the first one left",
            &format!("increment {{\"by\":40}} →  {}  {}", self.strong(&second.text), self.facts(&second)),
        );
        let (out, back, third) = self.swap()?;
        self.step(
            "5",
            "Swapped out, it has no sandbox at all; the next call brings it back, count and all",
            &format!(
                "{out}\nincrement {{\"by\":0}}  →  {}  {}",
                self.strong(&third.text),
                self.facts(&third)
            ),
        );
        let warm = self.warm()?;
        self.step("6", &format!("{WARM_CALLS} more calls, one after another"), &warm.in_words());

        let answers = [&first.text, &second.text, &third.text];
        let expected = [2, 42, 42].map(|count| json!({ "count": count }).to_string());
        if answers.iter().zip(&expected).any(|(answer, expected)| *answer != expected) {
            return Err(Failure::host("the answers are not what they must be")
                .detail(format!(
                    "expected {}, got {}",
                    expected.join(" "),
                    answers.map(String::as_str).join(" ")
                ))
                .remedy("this is a bug in Denizen: please report it with the output above"));
        }
        self.end(&first, &back, &third, &warm, began)
    }

    fn end(
        &self,
        first: &Answer,
        back: &Value,
        third: &Answer,
        warm: &Warm,
        began: Instant,
    ) -> Result<(), Failure> {
        if self.terminal.json {
            return self.terminal.document(&json!({
                "first": parsed(&first.text), "first_us": micros(first.took), "last": parsed(&third.text),
                "back_us": micros(third.took), "swapped": back,
                "warm_us": { "min": micros(warm.min), "p50": micros(warm.p50), "p99": micros(warm.p99) },
                "total_ms": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            }));
        }
        self.terminal.answer(format!("\nThat was it, in {}.", units::duration(began.elapsed())))?;
        let me = place::this_command();
        let mut next = Table::without_head();
        for (command, what) in [
            (format!("{me} dev"), "all examples on http://127.0.0.1:7070, rebuilt on every change"),
            (format!("{me} new hello"), "a package of your own"),
            (format!("{me} --help"), "everything else"),
        ] {
            next.row(vec![Cell::plain(format!("  {command}")).painted(Paint::bold), Cell::plain(what)]);
        }
        self.terminal.answer(format!("\nYours next:\n\n{}", next.render(self.terminal.out)))
    }

    /// One numbered step and what came of it.
    fn step(&self, number: &str, title: &str, body: &str) {
        if self.terminal.json {
            return;
        }
        let paint = self.terminal.out;
        let body = body.replace('\n', "\n     ");
        // A reader who has gone is noticed at the end.
        let _ = self.terminal.answer(format!(
            "\n{}  {}\n     {body}",
            paint.cyan(&format!(" {number}")),
            paint.bold(title)
        ));
    }

    fn strong(&self, text: &str) -> String {
        self.terminal.out.green(text)
    }

    fn facts(&self, answer: &Answer) -> String {
        let commit = answer.head.commit.map_or(String::new(), |commit| format!("commit {commit}, "));
        self.terminal.out.dim(&format!("{commit}{}", units::duration(answer.took)))
    }

    fn deploy(&self, counter: &Path) -> Result<String, Failure> {
        self.terminal.say(self.terminal.err.dim("\nbuilding images/examples/counter ..."));
        let mut packed = Packed::from_package(self.terminal, counter, Profile::Dev)?;
        let app = packed.manifest.name.clone();
        Ok(image::in_words(&packed.deploy(&self.node, &app, denizen_client::DeployOptions::default())?))
    }

    fn call(&self, process: &str, input: &str) -> Result<Answer, Failure> {
        let call = Call {
            app: "counter",
            process: Some(process),
            function: "increment",
            content_type: Some("application/json"),
            ..Call::default()
        };
        let started = Instant::now();
        let mut reply = self.node.call(&call, Input::Bytes(input.as_bytes()))?;
        let mut text = String::new();
        let read = reply.read_to_string(&mut text);
        read.map_err(|source| self.node.broke_off("reading the reply", source))?;
        Ok(Answer { text, head: reply.head.clone(), took: started.elapsed() })
    }

    fn swap(&self) -> Result<(String, Value, Answer), Failure> {
        let swapped = self.node.swap_out("counter", "alice")?;
        let state = units::bytes(swapped.state_bytes);
        let words = format!("counter/alice is {}, {state} of state in the swap store", swapped.phase);
        let answer = self.call("alice", r#"{"by":0}"#)?;
        Ok((words, serde_json::to_value(&swapped).unwrap_or_default(), answer))
    }

    fn warm(&self) -> Result<Warm, Failure> {
        let mut times = Vec::with_capacity(WARM_CALLS);
        for _ in 0..WARM_CALLS {
            times.push(self.call("alice", r#"{"by":1}"#)?.took);
        }
        Ok(Warm::of(times))
    }
}

/// How long warm calls took, over a kept-alive connection, HTTP and JSON included.
struct Warm {
    min: Duration,
    p50: Duration,
    p99: Duration,
}

impl Warm {
    /// `times` is not empty.
    fn of(mut times: Vec<Duration>) -> Warm {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        Warm { min: at(0), p50: at(50), p99: at(99) }
    }

    fn in_words(&self) -> String {
        let [p50, p99, min] = [self.p50, self.p99, self.min].map(units::duration);
        let times = format!("half of them took at most {p50}, 99 of 100 at most {p99}; the fastest {min}");
        format!("{times}\neach an HTTP request, a transaction and its commit")
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Warm;

    #[test]
    fn percentiles_of_a_sorted_run() {
        let warm = Warm::of((1..=200).rev().map(Duration::from_micros).collect());
        let micros = |time: Duration| time.as_micros();
        assert_eq!((micros(warm.min), micros(warm.p50), micros(warm.p99)), (1, 100, 198));
    }
}
