//! The functions that benchmarks call, as small as functions get: what is measured is everything around them.

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

denizen::export!(echo, count);
