//! The live line: one line on the terminal, written over twice a second, for whoever waits.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::tally::Tallies;
use crate::terminal::Terminal;

const EVERY: Duration = Duration::from_millis(500);
/// To the beginning of the line, and clear it.
const OVER: &str = "\r\x1b[K";

/// Shows the line until it is dropped, and then removes it. Does nothing where nobody watches.
#[derive(Debug)]
pub(super) struct Meter(Option<(mpsc::Sender<()>, JoinHandle<()>)>);

impl Meter {
    pub(super) fn start(terminal: &Terminal, tallies: &Arc<Tallies>) -> Meter {
        if terminal.json || !io::stderr().is_terminal() {
            return Meter(None);
        }
        let (stop, stopped) = mpsc::channel();
        let tallies = Arc::clone(tallies);
        let work = move || show(&tallies, &stopped);
        // Without the line the measurement goes on.
        Meter(thread::Builder::new().name("meter".to_owned()).spawn(work).ok().map(|thread| (stop, thread)))
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

fn show(tallies: &Tallies, stopped: &mpsc::Receiver<()>) {
    let (start, mut last, mut failed) = (Instant::now(), Instant::now(), 0);
    while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        let news = tallies.since();
        failed += news.failed();
        let period = last.elapsed().as_secs_f64().max(1e-9);
        last = Instant::now();
        #[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
        let rate = news.succeeded() as f64 / period;
        let line = line(start.elapsed(), rate, news.percentile(50.0), news.percentile(99.0), failed);
        let _ = write!(io::stderr().lock(), "{OVER}{line}");
    }
    let _ = write!(io::stderr().lock(), "{OVER}");
}

fn line(elapsed: Duration, rate: f64, p50: Duration, p99: Duration, failed: u64) -> String {
    let failures = if failed == 0 { String::new() } else { format!("  {failed} failed") };
    let (p50, p99) = (short(p50), short(p99));
    format!("{:>5.1} s  {rate:>8.0} calls/s  p50 {p50:>7}  p99 {p99:>7}{failures}", elapsed.as_secs_f64())
}

/// A latency in three digits: `834 ns`, `85.2 µs`, `1.45 ms`, `2.50 s`.
pub(super) fn short(time: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let nanos = time.as_nanos() as f64;
    let (value, unit) = match nanos {
        ..1e3 => return format!("{nanos:.0} ns"),
        1e3..1e6 => (nanos / 1e3, "µs"),
        1e6..1e9 => (nanos / 1e6, "ms"),
        _ => (nanos / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_a_terminal() {
        let line = line(
            Duration::from_millis(12_345),
            98_765.4,
            Duration::from_micros(85),
            Duration::from_millis(3),
            7,
        );
        assert_eq!(line, " 12.3 s     98765 calls/s  p50 85.0 µs  p99 3.00 ms  7 failed");
    }

    #[test]
    fn latencies_have_three_digits() {
        for (nanos, text) in [
            (0, "0 ns"),
            (834, "834 ns"),
            (1_450_000, "1.45 ms"),
            (120_000, "120 µs"),
            (61_000_000_000, "61.0 s"),
        ] {
            assert_eq!(short(Duration::from_nanos(nanos)), text);
        }
    }
}
