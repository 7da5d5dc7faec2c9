//! Medians, percentiles, and how they are printed.

/// The figures of one side of a comparison: one list of samples a round.
#[derive(Debug, Default)]
pub(crate) struct Side {
    rounds: Vec<Vec<f64>>,
}

impl Side {
    /// Adds a round; the samples are in microseconds.
    pub(crate) fn push(&mut self, mut samples: Vec<f64>) {
        assert!(!samples.is_empty(), "a round without samples");
        samples.sort_by(f64::total_cmp);
        self.rounds.push(samples);
    }

    /// The percentile `p` (0 to 100) of each round.
    fn percentiles(&self, p: usize) -> Vec<f64> {
        let mut each: Vec<f64> =
            self.rounds.iter().map(|round| round[((round.len() - 1) * p).div_ceil(100)]).collect();
        each.sort_by(f64::total_cmp);
        each
    }

    /// The median over rounds of the percentile `p`.
    pub(crate) fn percentile(&self, p: usize) -> f64 {
        median(&self.percentiles(p))
    }
}

/// The middle of sorted values.
fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// Prints a table: a row a side, the first being the one that the ratios refer to.
pub(crate) fn table(title: &str, sides: &[(&str, &Side)]) {
    println!("## {title}\n");
    println!("| | p50 µs (range over rounds) | p99 µs (range) | × p50 | × p99 |");
    println!("|---|---|---|---|---|");
    let floor = sides[0].1;
    for (name, side) in sides {
        let (p50, p99) = (side.percentiles(50), side.percentiles(99));
        println!(
            "| {name} | {:.1} ({:.1}–{:.1}) | {:.1} ({:.1}–{:.1}) | {:.2} | {:.2} |",
            median(&p50),
            p50[0],
            p50[p50.len() - 1],
            median(&p99),
            p99[0],
            p99[p99.len() - 1],
            side.percentile(50) / floor.percentile(50),
            side.percentile(99) / floor.percentile(99),
        );
    }
    println!();
}

/// Prints a table with throughput: a row a side with its calls a second in each round; ratios refer to the first.
pub(crate) fn rates(title: &str, sides: &[(&str, &Side, &[f64])]) {
    println!("## {title}\n");
    println!("| | p50 µs (range over rounds) | p99 µs | calls/s (range) | × p50 | × calls/s |");
    println!("|---|---|---|---|---|---|");
    let sorted = |rates: &[f64]| {
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted
    };
    let (_, floor, floor_rates) = sides[0];
    for (name, side, rates) in sides {
        let (p50, rates) = (side.percentiles(50), sorted(rates));
        println!(
            "| {name} | {:.1} ({:.1}–{:.1}) | {:.1} | {:.0} ({:.0}–{:.0}) | {:.2} | {:.2} |",
            median(&p50),
            p50[0],
            p50[p50.len() - 1],
            side.percentile(99),
            median(&rates),
            rates[0],
            rates[rates.len() - 1],
            side.percentile(50) / floor.percentile(50),
            median(&rates) / median(&sorted(floor_rates)),
        );
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_round_and_medians_over_rounds() {
        let mut side = Side::default();
        side.push((1..=100).rev().map(f64::from).collect());
        side.push(vec![7.0]);
        side.push(vec![1000.0; 3]);
        assert_eq!(side.percentile(50), 51.0);
        assert_eq!(side.percentile(99), 100.0);
    }
}
