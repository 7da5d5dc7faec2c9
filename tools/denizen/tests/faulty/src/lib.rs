//! Everything that a function can do wrong, one function a fault, and `count`, which works, to see what survived.

use denizen::prelude::*;
use std::hint::black_box;

#[state]
#[derive(Default)]
struct Count {
    count: u64,
}

/// Works: adds one and answers with the sum.
#[function]
fn count(cx: &mut Context) -> Result<String> {
    let mut c = cx.edit_or_default::<Count>("count")?;
    c.count += 1;
    Ok(c.count.to_string())
}

/// Works: answers with the count as it is.
#[function]
fn value(cx: &Context) -> Result<String> {
    Ok(cx.get::<Count>("count")?.map_or(0, |c| c.count.to_native()).to_string())
}

/// Works: answers with what it got.
#[function]
fn echo<'input>(_cx: &Context, input: &'input [u8]) -> &'input [u8] {
    input
}

/// Changes its state and then returns an error.
#[function]
fn fail(cx: &mut Context) -> Result<String> {
    count(cx)?;
    Err(failed("this function always fails"))
}

/// Changes its state and then panics.
#[function]
fn panic(cx: &mut Context) -> Result<String> {
    count(cx)?;
    panic!("as it was told to");
}

/// Changes its state and then aborts.
#[function]
fn abort(cx: &mut Context) -> Result<String> {
    count(cx)?;
    std::process::abort();
}

/// Recurses until its stack is used up.
#[function]
fn overflow_stack(_cx: &mut Context) -> Result<String> {
    fn deeper(depth: u64) -> u64 {
        let here = black_box([depth; 64]);
        if depth == u64::MAX { 0 } else { deeper(depth + 1) + here[usize::try_from(depth % 64).unwrap_or(0)] }
    }
    Ok(deeper(0).to_string())
}

/// Reads where nothing is.
#[function]
fn segfault(_cx: &mut Context) -> Result<String> {
    // SAFETY: there is none; that is the point. The address is not mapped, and the process dies here.
    Ok(unsafe { std::ptr::read_volatile(black_box(16) as *const u8) }.to_string())
}

/// Never returns.
#[function]
fn loop_for_ever(_cx: &mut Context) -> Result<String> {
    loop {
        black_box(());
    }
}

/// Sleeps for a minute, deaf to its deadline.
#[function]
fn sleep(_cx: &mut Context) -> Result<String> {
    std::thread::sleep(std::time::Duration::from_secs(60));
    Ok(String::new())
}

/// Allocates and touches memory until there is no more.
#[function]
fn allocate(_cx: &mut Context) -> Result<String> {
    let mut all = Vec::new();
    loop {
        all.push(black_box(vec![1_u8; 1 << 20]));
    }
}

/// Starts threads until it may not.
#[function]
fn start_threads(_cx: &mut Context) -> Result<String> {
    let mut started = 0;
    loop {
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        if let Err(error) = thread.spawn(|| std::thread::sleep(std::time::Duration::from_secs(1))) {
            return Err(failed(format!("thread {started} was refused: {error}")));
        }
        started += 1;
    }
}

/// Makes a system call that no function may make.
#[function]
fn open_socket(_cx: &mut Context) -> Result<String> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    Ok(format!("socket returned {fd}"))
}

/// Opens a file of the host.
#[function]
fn open_file(_cx: &mut Context) -> Result<String> {
    Ok(std::fs::read_to_string("/etc/passwd")?)
}

/// Writes its reply piece by piece, for ever, until the caller is gone.
#[function]
fn stream_for_ever(cx: &mut Context) -> Result<()> {
    use std::io::Write;
    let mut reply = cx.reply_writer("application/octet-stream")?;
    loop {
        if let Err(error) = reply.write_all(&[b'x'; 64 << 10]) {
            println!("the stream ended: {error}");
            return Err(error.into());
        }
    }
}

/// Stores values until its quota is used up.
#[function]
fn fill_state(cx: &mut Context) -> Result<String> {
    for number in 0_u32.. {
        cx.put_bytes(format!("filler-{number}"), &vec![7_u8; 256 << 10])?;
    }
    Ok(String::new())
}

/// Works: stores its input.
#[function]
fn keep(cx: &mut Context, input: &[u8]) -> Result<String> {
    count(cx)?;
    cx.put_bytes("kept", input)?;
    Ok(input.len().to_string())
}

/// Prints a line on each of its streams.
#[function]
fn speak(_cx: &mut Context) -> Result<String> {
    println!("said on stdout");
    eprintln!("said on stderr");
    Ok(String::new())
}

/// Works: logs and prints a line, and answers with the trace that it belongs to.
#[function]
fn traced(cx: &Context) -> String {
    cx.log(LogLevel::Info, "logged");
    println!("printed");
    cx.traceparent().unwrap_or("none").to_owned()
}

denizen::export!(
    count,
    value,
    echo,
    fail,
    panic,
    abort,
    overflow_stack,
    segfault,
    loop_for_ever,
    sleep,
    allocate,
    start_threads,
    open_socket,
    open_file,
    stream_for_ever,
    fill_state,
    keep,
    speak,
    traced,
);
