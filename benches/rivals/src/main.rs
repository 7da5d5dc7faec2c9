//! The programs that Denizen is measured against. One binary, one word to say which:
//!
//! * `rivals http`: a plain hyper echo server on tokio's current-thread runtime. Prints its address.
//! * `rivals counter REDIS`: the same server, which answers with `INCR counter` of the Redis at that address.
//! * `rivals echo LEN [CONGESTION]`: a blocking thread for each connection, which reads LEN bytes and writes them back, under that
//!   congestion control. Prints its address.
//! * `rivals ring`: an echo server on one io_uring. Prints its address.
//! * `rivals start PLUGIN N`: what it costs to start something isolated with nothing of ours around it: `clone3` with the
//!   namespaces that a sandbox has, `exec` of a dynamic program, `dlopen` of the plugin. Prints microseconds, one a line.
//! * `rivals idle`: a dynamic glibc process that waits. Prints a line once it does.

mod counter;
mod echo;
mod http;
mod start;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [_, "http"] => http::serve(),
        [_, "counter", redis] => counter::serve(redis),
        [_, "echo", len] => echo::threads(len.parse().expect("a number of bytes"), None),
        [_, "echo", len, name] => echo::threads(len.parse().expect("a number of bytes"), Some(name)),
        [_, "ring"] => echo::ring(),
        [_, "start", plugin, rounds] => start::measure(plugin, rounds.parse().expect("a number of rounds")),
        [_, "started", plugin] => start::started(plugin),
        [_, "idle"] => {
            println!("waiting");
            loop {
                std::thread::park();
            }
        }
        _ => {
            eprintln!(
                "usage: rivals http | counter REDIS | echo LEN [CONGESTION] | ring | start PLUGIN ROUNDS | idle"
            );
            std::process::exit(2);
        }
    }
}
