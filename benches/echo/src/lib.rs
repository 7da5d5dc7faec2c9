//! The functions that benchmarks call, as small as functions get: what is measured is everything around them.

use std::time::{Duration, Instant};

use denizen::prelude::*;

/// Answers with its input.
#[function]
fn echo<'input>(_cx: &Context, input: &'input [u8]) -> &'input [u8] {
    input
}

/// Adds one to a number that is committed with each call.
#[function]
fn count(cx: &mut Context) -> Result<String> {
    let last = cx.get_bytes("count")?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let next = last + 1;
    cx.put_bytes("count", &next.to_le_bytes())?;
    Ok(next.to_string())
}

/// How long a call goes on that keeps others busy.
fn milliseconds(input: &[u8]) -> Result<Duration> {
    let text = std::str::from_utf8(input).ok().and_then(|text| text.parse().ok());
    text.map(Duration::from_millis).ok_or_else(|| bad_input("the input is a number of milliseconds"))
}

/// Keeps a processor busy.
#[function]
fn burn(_cx: &Context, input: &[u8]) -> Result<()> {
    let until = Instant::now() + milliseconds(input)?;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    Ok(())
}

/// Prints.
#[function]
fn print(_cx: &Context, input: &[u8]) -> Result<()> {
    let until = Instant::now() + milliseconds(input)?;
    while Instant::now() < until {
        println!("{}", "all work and no play ".repeat(40));
    }
    Ok(())
}

denizen::export!(echo, count, burn, print);
