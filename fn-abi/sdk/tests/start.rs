//! How a plugin starts: functions that are found at run time, and what the host is told when the start fails.

#![allow(clippy::unwrap_used, reason = "a test ends where it is surprised")]

use denizen::__private::{DzHost, DzInit};
use denizen::prelude::*;
use denizen::testing::{Process, process};
use denizen::{Concurrency, Declaration, FailKind, Init, Payload};
use std::cell::Cell;

/// What a host for another language finds in its scripts: a name, and a program for an interpreter.
const SCRIPTS: &[(&str, &str)] = &[("twice", "cc"), ("first-and-last", "fl")];

#[function]
fn built_in(_: &Context) -> &'static str {
    "built in"
}

fn find_scripts(init: &mut Init) -> Result<()> {
    assert_eq!((init.image_dir().to_str(), init.manifest()), (Some("/image"), r#"{"name":"test"}"#));
    for (name, program) in SCRIPTS {
        let declaration = Declaration {
            doc: format!("runs `{program}`"),
            concurrency: Concurrency::ReadOnly,
            output: Payload::Json,
            ..Declaration::new(*name)
        };
        init.declare(&declaration, move |cx| interpret(program, cx))?;
    }
    init.declare(&Declaration::new("counts"), |cx| {
        *cx.edit_or_default::<u64>("calls")? += 1;
        Ok(())
    })
}

/// The interpreter: each letter of the program copies something of the input.
fn interpret(program: &str, cx: &mut Context) -> Result<()> {
    let input: &str = cx.input()?;
    let step = |letter| match letter {
        'c' => input,
        'f' => &input[..1],
        _ => &input[input.len() - 1..],
    };
    let output: String = program.chars().map(step).collect();
    if input == "write" {
        cx.put("forbidden", &output)?;
    }
    cx.reply(Json(output))
}

denizen::export!(built_in, init = find_scripts);

#[test]
fn functions_are_declared_at_run_time_with_data_of_their_own() {
    let mut process = process!();
    assert_eq!(process.call("built_in", "").unwrap().text(), "built in");
    assert_eq!(process.call("twice", "abc").unwrap().text(), r#""abcabc""#);
    assert_eq!(process.call("first-and-last", "abc").unwrap().text(), r#""ac""#);
    assert_eq!(process.functions()["twice"].doc, "runs `cc`");
    process.call("counts", "").unwrap();
    assert_eq!(process.keys(), ["calls"]);
}

#[test]
fn a_read_only_function_cannot_write_even_if_it_tries() {
    let mut process = process!();
    let failure = process.call("twice", "write").unwrap_err();
    assert_eq!(failure.kind, FailKind::Failed);
    assert!(failure.message.contains("`&mut Context`"), "{}", failure.message);
    assert!(process.call("first-and-last", "").unwrap_err().kind == FailKind::Panicked);
}

type Setup = fn(&mut Init) -> Result<()>;

/// Starts a plugin whose `init = …` is `setup`.
fn refused(setup: Setup) -> String {
    thread_local!(static SETUP: Cell<Option<Setup>> = const { Cell::new(None) });
    unsafe extern "C" fn start(host: *const DzHost, init: *const DzInit) -> i32 {
        // SAFETY: what the host passes is passed on.
        unsafe { denizen::__private::init(host, init, &[], SETUP.get()) }
    }
    SETUP.set(Some(setup));
    // SAFETY: `start` is what `export!` makes, and it is never unloaded.
    unsafe { Process::start(start) }.unwrap_err()
}

#[test]
fn a_start_that_fails_says_why() {
    assert_eq!(refused(|_| Err(failed("no interpreter"))), "no interpreter");
    let panicked = refused(|_| panic!("at the start"));
    assert!(
        panicked.starts_with("a panic while the plugin started: at the start (")
            && panicked.contains("start.rs:")
    );
    let twice = refused(|init| {
        init.declare(&Declaration::new("f"), |_| Ok(()))?;
        init.declare(&Declaration::new("f"), |_| Ok(()))
    });
    assert!(twice.contains("`f`") && twice.contains("twice"), "{twice}");
}
