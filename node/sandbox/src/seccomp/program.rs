//! Compiles a table of rules to a classic BPF program.
//!
//! By hand because a filter here has four outcomes, and `seccompiler` knows two per filter. Rules are found by a binary
//! search: the kernel runs a new filter once for every system call, to remember those that are always allowed, and with a
//! linear program that took longer than everything else on the way to a sandbox's first call. Neighbours with one outcome are one
//! step of that search: every sandbox has its own copy of both filters in the kernel, twice as bytes and once as machine code.

use libc::sock_filter;

/// What happens to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It runs.
    Allow,
    /// It fails with this error number, as code that probes for it expects.
    Refuse(i32),
    /// `SIGSYS`: the sandbox's handler names the call in its last words and ends the process.
    Trap,
}

/// A condition on one argument: its low half under a mask is one of `values` (and, if `whole`, its high half is zero).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Test {
    /// Which argument, 0 to 5.
    pub(crate) argument: u8,
    /// The bits looked at. The kernel reads an `int` argument's low half only, and so do we.
    pub(crate) mask: u32,
    /// What those bits may be.
    pub(crate) values: &'static [u32],
    /// Whether the high half must be zero: for pointers and `unsigned long` flags.
    pub(crate) whole: bool,
}

/// One system call's rule: `verdict` if all tests hold, else `otherwise`.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// The call's number.
    pub(crate) nr: i64,
    /// Conditions.
    pub(crate) tests: Vec<Test>,
    /// When they hold.
    pub(crate) verdict: Verdict,
    /// When one does not.
    pub(crate) otherwise: Verdict,
}

const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// The `AUDIT_ARCH_*` of this program's own calls; any other one comes from a compatibility mode and is killed.
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
pub(crate) const ARCH: u32 = 0xC000_00B7;

/// Set in the number of an x32 call, which has the same architecture as a native one.
const X32_BIT: u32 = 0x4000_0000;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const JUMP_GREATER_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// One instruction.
fn op(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = u16::try_from(code).expect("a BPF code has 16 bits");
    sock_filter { code, jt, jf, k }
}

/// The instruction that ends the program with a verdict.
fn ret(verdict: Verdict) -> sock_filter {
    let action = match verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::Trap => libc::SECCOMP_RET_TRAP,
        Verdict::Refuse(errno) => libc::SECCOMP_RET_ERRNO | (errno.unsigned_abs() & libc::SECCOMP_RET_DATA),
    };
    op(RETURN, action, 0, 0)
}

/// How far to jump over `instructions`.
fn over(instructions: usize) -> u8 {
    u8::try_from(instructions).expect("a rule has under 256 instructions")
}

/// Compiles. Calls without a rule are trapped; calls above `highest`, which are newer than this program, do not exist.
pub(crate) fn compile(rules: Vec<Rule>, highest: i64) -> Vec<sock_filter> {
    let kill = op(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0);
    let mut program = vec![
        op(LOAD, OFFSET_ARCH, 0, 0),
        op(JUMP_EQUAL, ARCH, 1, 0),
        kill,
        op(LOAD, OFFSET_NR, 0, 0),
        op(JUMP_GREATER_EQUAL, X32_BIT, 0, 1),
        kill,
        op(JUMP_GREATER, number(highest), 0, 1),
        ret(Verdict::Refuse(libc::ENOSYS)),
    ];
    program.extend(search(&runs(rules, highest)));
    program
}

/// Calls with numbers in a row, up to the next run, for which the program goes on in the same way.
struct Run {
    /// The number of the first.
    first: u32,
    /// The outcome, whatever the arguments; `None`: it is for them to decide.
    plain: Option<Verdict>,
    /// What decides on them; every path returns.
    body: Vec<sock_filter>,
}

/// All calls up to `highest`, in as few runs as there are.
fn runs(mut rules: Vec<Rule>, highest: i64) -> Vec<Run> {
    rules.sort_unstable_by_key(|rule| rule.nr);
    let mut rules = rules.iter().peekable();
    let mut runs: Vec<Run> = Vec::new();
    for nr in 0..=highest {
        let rule = rules.next_if(|rule| rule.nr == nr);
        let plain = rule.map_or(Some(Verdict::Trap), |rule| rule.tests.is_empty().then_some(rule.verdict));
        if plain.is_none() || runs.last().is_none_or(|last| last.plain != plain) {
            let body = rule.map_or_else(|| vec![ret(Verdict::Trap)], body);
            runs.push(Run { first: number(nr), plain, body });
        }
    }
    runs
}

/// A system call's number, as the filter sees it.
fn number(nr: i64) -> u32 {
    u32::try_from(nr).expect("system call numbers are small")
}

/// A binary search over runs in order; every path returns. Where a jump does not reach that far, a plain one does, which has no limit.
fn search(runs: &[Run]) -> Vec<sock_filter> {
    let [first, rest @ ..] = runs else { return vec![ret(Verdict::Trap)] };
    if rest.is_empty() {
        return first.body.clone();
    }
    let (below, above) = runs.split_at(runs.len() / 2);
    let (below, from) = (search(below), above.first().map_or(0, |run| run.first));
    let mut out = match u8::try_from(below.len()) {
        Ok(distance) => vec![op(JUMP_GREATER_EQUAL, from, distance, 0)],
        Err(_) => {
            let distance = u32::try_from(below.len()).expect("a program is short");
            vec![op(JUMP_GREATER_EQUAL, from, 0, 1), op(JUMP, distance, 0, 0)]
        }
    };
    out.extend(below);
    out.extend(search(above));
    out
}

/// What decides on a call that has this rule; every path returns.
fn body(rule: &Rule) -> Vec<sock_filter> {
    let mut body = Vec::new();
    for test in &rule.tests {
        body.extend(check(test, rule.otherwise));
    }
    body.push(ret(rule.verdict));
    body
}

/// Falls through if the test holds, else returns `otherwise`.
fn check(test: &Test, otherwise: Verdict) -> Vec<sock_filter> {
    let low = OFFSET_ARGS + 8 * u32::from(test.argument);
    let mut out = Vec::new();
    if test.whole {
        out.extend([op(LOAD, low + 4, 0, 0), op(JUMP_EQUAL, 0, 1, 0), ret(otherwise)]);
    }
    out.push(op(LOAD, low, 0, 0));
    if test.mask != u32::MAX {
        out.push(op(AND, test.mask, 0, 0));
    }
    for (index, &value) in test.values.iter().enumerate() {
        let to_end = test.values.len() - index;
        out.push(op(JUMP_EQUAL, value, over(to_end), 0));
    }
    out.push(ret(otherwise));
    out
}

#[cfg(test)]
pub(crate) mod run {
    //! A BPF machine, just large enough to run the compiled programs in a test.

    use super::*;

    /// Runs the program on one system call and returns the raw action.
    pub(crate) fn action(program: &[sock_filter], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let now = program[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { now.jt } else { now.jf });
            match u32::from(now.code) {
                LOAD => accumulator = load(now.k, arch, nr, args),
                AND => accumulator &= now.k,
                JUMP_EQUAL => at += jump(accumulator == now.k),
                JUMP_GREATER => at += jump(accumulator > now.k),
                JUMP_GREATER_EQUAL => at += jump(accumulator >= now.k),
                JUMP => at += usize::try_from(now.k).unwrap(),
                RETURN => return now.k,
                other => panic!("unknown instruction {other}"),
            }
        }
    }

    fn load(offset: u32, arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        match offset {
            OFFSET_NR => nr,
            OFFSET_ARCH => arch,
            _ => {
                let argument = args[usize::try_from((offset - OFFSET_ARGS) / 8).unwrap()];
                let half = if (offset - OFFSET_ARGS).is_multiple_of(8) { argument } else { argument >> 32 };
                u32::try_from(half & 0xFFFF_FFFF).unwrap()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: &[Test] = &[
        Test { argument: 1, mask: 0x7F, values: &[1, 9], whole: false },
        Test { argument: 2, mask: u32::MAX, values: &[0], whole: true },
    ];

    fn program() -> Vec<sock_filter> {
        let rules = vec![
            Rule { nr: 5, tests: Vec::new(), verdict: Verdict::Allow, otherwise: Verdict::Trap },
            Rule { nr: 6, tests: TEST.to_vec(), verdict: Verdict::Allow, otherwise: Verdict::Refuse(13) },
        ];
        compile(rules, 10)
    }

    fn act(nr: u32, args: [u64; 6]) -> u32 {
        run::action(&program(), ARCH, nr, args)
    }

    #[test]
    fn plain_rules_and_defaults() {
        assert_eq!(act(5, [u64::MAX; 6]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(act(7, [0; 6]), libc::SECCOMP_RET_TRAP);
        assert_eq!(act(11, [0; 6]), libc::SECCOMP_RET_ERRNO | 38);
    }

    #[test]
    fn arguments_are_compared_under_the_mask_and_whole_ones_in_both_halves() {
        let refused = libc::SECCOMP_RET_ERRNO | 13;
        assert_eq!(act(6, [0, 0x81, 0, 0, 0, 0]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(act(6, [0, 0xFFFF_FFFF_0000_0009, 0, 0, 0, 0]), libc::SECCOMP_RET_ALLOW);
        assert_eq!(act(6, [0, 2, 0, 0, 0, 0]), refused);
        assert_eq!(act(6, [0, 1, 1, 0, 0, 0]), refused);
        assert_eq!(act(6, [0, 1, 1 << 32, 0, 0, 0]), refused);
    }

    /// With a rule on every third call, each with an outcome of its own: also where the search is longer than a jump reaches.
    #[test]
    fn each_call_is_found_among_many() {
        let rule = |nr: i64| {
            let refused = Verdict::Refuse(i32::try_from(nr + 1).unwrap());
            Rule { nr, tests: Vec::new(), verdict: refused, otherwise: refused }
        };
        let program = compile((0..900).step_by(3).map(rule).collect(), 901);
        for nr in 0..=901 {
            let expected = if nr % 3 == 0 && nr < 900 {
                libc::SECCOMP_RET_ERRNO | (nr + 1)
            } else {
                libc::SECCOMP_RET_TRAP
            };
            assert_eq!(run::action(&program, ARCH, nr, [0; 6]), expected, "call {nr}");
        }
        assert_eq!(run::action(&program, ARCH, 902, [0; 6]), libc::SECCOMP_RET_ERRNO | 38);
    }

    #[test]
    fn neighbours_with_one_outcome_are_one_step() {
        let allow = |nr| Rule { nr, tests: Vec::new(), verdict: Verdict::Allow, otherwise: Verdict::Allow };
        let (three, one) = (compile(vec![allow(3), allow(4), allow(5)], 9), compile(vec![allow(3)], 9));
        assert_eq!(three.len(), one.len());
    }

    #[test]
    fn other_architectures_are_killed() {
        let program = program();
        const I386: u32 = 0x4000_0003;
        assert_eq!(run::action(&program, I386, 5, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(run::action(&program, ARCH, X32_BIT | 5, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(run::action(&program, ARCH, u32::MAX, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}
