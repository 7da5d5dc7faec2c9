//! Reading: hot, at random, and for the first time.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::Instant;

use denizen_engine::Access;
use redb::ReadableDatabase;

use crate::Plan;
use crate::engines::{TABLE, denizen, fill_denizen, fill_redb, lmdb, redb};
use crate::rounds::{Contender, Rng, compare, key, on_core};

/// A `get` as the SDK does it: the pointer, whether it was validated, and its first byte.
fn touch(value: &denizen_engine::Value<'_>) -> u8 {
    if value.validated.load(Ordering::Relaxed) == 0 {
        value.validated.store(1, Ordering::Relaxed);
    }
    value.bytes[0]
}

/// At most 1,000 keys, resident and validated, 64 B to 16 MiB.
pub(crate) fn hot(plan: &Plan) {
    let sizes: &[(usize, u64)] = plan.pick(
        &[(64, 1000), (4 << 10, 1000), (64 << 10, 200), (1 << 20, 50), (16 << 20, 10)],
        &[(64, 100), (1 << 20, 3)],
    );
    for &(size, keys) in sizes {
        let value = vec![7; size];
        let engine = denizen(&plan.dir("hot-denizen"));
        fill_each(&engine, keys, &value);
        let tx = engine.begin(Access::Exclusive);
        let rival = lmdb(&plan.dir("hot-lmdb"), false);
        (0..keys).for_each(|n| rival.put(&key(n), &value));
        let rival_tx = rival.env.read_txn().unwrap();
        let red = redb(&plan.dir("hot-redb"));
        (0..keys).for_each(|n| crate::engines::put_redb(&red, &key(n), &value, false));
        let red_tx = red.begin_read().unwrap();
        let red_table = red_tx.open_table(TABLE).unwrap();
        let map: BTreeMap<[u8; 16], Box<[u8]>> =
            (0..keys).map(|n| (key(n), value.as_slice().into())).collect();
        let wanted: Vec<[u8; 16]> = (0..keys).map(key).collect();
        let next = |at: &mut usize| {
            *at = (*at + 7) % wanted.len();
            &wanted[*at]
        };
        let (mut a, mut b, mut c, mut d) = (0, 0, 0, 0);
        let red_count = if size > 1 << 16 { 1 } else { 10 };
        let contenders = vec![
            Contender::busy("denizen", || {
                black_box(touch(&tx.get(next(&mut a)).unwrap().unwrap()));
            }),
            Contender::busy("LMDB", || {
                black_box(rival.db.get(&rival_tx, next(&mut b)).unwrap().unwrap()[0]);
            }),
            Contender::new("redb", |n| {
                let begun = on_core();
                for _ in 0..n / red_count {
                    black_box(red_table.get(next(&mut c).as_slice()).unwrap().unwrap().value()[0]);
                }
                (on_core() - begun) * u32::try_from(red_count).unwrap()
            }),
            Contender::busy("BTreeMap", || {
                black_box(map[next(&mut d)][0]);
            }),
        ];
        compare(
            &format!("hot get, {size} B, {keys} keys"),
            plan.pick(51, 3),
            plan.pick(20_000, 1000),
            contenders,
        );
    }
}

fn fill_each(engine: &denizen_engine::Engine, keys: u64, value: &[u8]) {
    for n in 0..keys {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(&key(n), value).unwrap();
        tx.commit().unwrap();
    }
}

/// A million keys in random order.
pub(crate) fn random(plan: &Plan) {
    let keys = plan.pick(1_000_000, 10_000);
    let value = [7; 64];
    let engine = denizen(&plan.dir("random-denizen"));
    fill_denizen(&engine, keys, &value);
    let rival = lmdb(&plan.dir("random-lmdb"), false);
    rival.fill(keys, &value);
    let red = redb(&plan.dir("random-redb"));
    fill_redb(&red, keys, &value);
    let map: BTreeMap<[u8; 16], [u8; 64]> = (0..keys).map(|n| (key(n), value)).collect();
    let tx = engine.begin(Access::Exclusive);
    let rival_tx = rival.env.read_txn().unwrap();
    let red_tx = red.begin_read().unwrap();
    let red_table = red_tx.open_table(TABLE).unwrap();
    // Everybody has read everything once: the first touch has a row of its own.
    for n in 0..keys {
        black_box(touch(&tx.get(&key(n)).unwrap().unwrap()));
        black_box(rival.db.get(&rival_tx, &key(n)).unwrap().unwrap()[0]);
        black_box(red_table.get(key(n).as_slice()).unwrap().unwrap().value()[0]);
    }
    // Each has keys of its own: what one has read would be in the cache for the next.
    let rng = |seed| {
        let mut rng = Rng(seed);
        move || key(rng.below(keys))
    };
    let (mut a, mut b, mut c, mut d, mut e) = (rng(11), rng(22), rng(33), rng(44), rng(55));
    let (mut f, mut g) = (rng(66), rng(77));
    let snapshot = engine.snapshot();
    let contenders = vec![
        Contender::busy("making the key alone", || {
            black_box(e());
        }),
        Contender::busy("denizen", || {
            black_box(touch(&tx.get(&a()).unwrap().unwrap()));
        }),
        Contender::busy("denizen, index alone", || {
            black_box(snapshot.info(&f()).unwrap().len);
        }),
        Contender::busy("denizen, plain bytes", || {
            black_box(tx.get(&g()).unwrap().unwrap().bytes[0]);
        }),
        Contender::busy("LMDB", || {
            black_box(rival.db.get(&rival_tx, &b()).unwrap().unwrap()[0]);
        }),
        Contender::busy("redb", || {
            black_box(red_table.get(c().as_slice()).unwrap().unwrap().value()[0]);
        }),
        Contender::busy("BTreeMap", || {
            black_box(map[&d()][0]);
        }),
    ];
    compare(&format!("random get, {keys} keys"), plan.pick(41, 3), plan.pick(20_000, 1000), contenders);
    println!("index: {} bytes per key", engine.summary().index_bytes / keys);
}

/// The first `get` after reopening: large values are compared with their checksum then.
pub(crate) fn first_touch(plan: &Plan) {
    for size in plan.pick(vec![64, 4 << 10, 64 << 10, 1 << 20, 16 << 20], vec![64, 1 << 20]) {
        let keys = u64::try_from((plan.pick(256 << 20, 4 << 20) / size).clamp(4, 2000)).unwrap();
        let dir = plan.dir("first");
        let engine = denizen(&dir);
        fill_each(&engine, keys, &vec![7; size]);
        engine.seal().unwrap();
        drop(engine);
        let mut times = Vec::new();
        let mut again = Vec::new();
        let engine = denizen(&dir);
        let snapshot = engine.snapshot();
        for times in [&mut times, &mut again] {
            for n in 0..keys {
                let begun = Instant::now();
                black_box(touch(&snapshot.get(&key(n)).unwrap().unwrap()));
                times.push(begun.elapsed());
            }
        }
        crate::rounds::quantiles(&format!("first get, {size} B"), "denizen, page cache warm", &mut times);
        crate::rounds::quantiles(&format!("second get, {size} B"), "denizen", &mut again);
    }
}

/// One hot `get` of 64 B beside one of Redis over loopback, where Redis is installed: client and server share the core.
pub(crate) fn redis(plan: &Plan) {
    let Some(mut redis) = Redis::start() else {
        println!("SKIPPED redis: `redis-server` is not installed or does not start");
        return;
    };
    let engine = denizen(&plan.dir("redis-denizen"));
    fill_denizen(&engine, 1000, &[7; 64]);
    (0..1000).for_each(|n| redis.set(&key(n), &[7; 64]));
    let tx = engine.begin(Access::Exclusive);
    let rng = || {
        let mut rng = Rng(7);
        move || key(rng.below(1000))
    };
    let (mut a, mut b) = (rng(), rng());
    let contenders = vec![
        Contender::each("denizen", || {
            black_box(touch(&tx.get(&a()).unwrap().unwrap()));
        }),
        Contender::new("Redis over loopback", |n| {
            let begun = Instant::now();
            for _ in 0..n / 100 {
                black_box(redis.get(&b()));
            }
            begun.elapsed() * 100
        }),
    ];
    let medians = compare("get, 64 B, 1000 keys", plan.pick(31, 3), plan.pick(20_000, 1000), contenders);
    println!("{:<26} Redis takes {:.0} times as long", "", medians[1] / medians[0]);
}

/// A server of our own, without persistence, and one connection to it.
struct Redis {
    server: std::process::Child,
    stream: std::net::TcpStream,
    reply: Vec<u8>,
}

impl Redis {
    fn start() -> Option<Redis> {
        use std::process::{Command, Stdio};
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let mut server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        for _ in 0..100 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            if let Ok(stream) = std::net::TcpStream::connect(("127.0.0.1", port)) {
                stream.set_nodelay(true).ok()?;
                return Some(Redis { server, stream, reply: vec![0; 1024] });
            }
        }
        let _ = server.kill();
        let _ = server.wait();
        None
    }

    /// Sends a command and waits for its reply, which is shorter than a packet.
    fn call(&mut self, parts: &[&[u8]]) -> &[u8] {
        use std::io::{Read, Write};
        let mut command = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            write!(command, "${}\r\n", part.len()).unwrap();
            command.extend_from_slice(part);
            command.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&command).unwrap();
        let len = self.stream.read(&mut self.reply).unwrap();
        &self.reply[..len]
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        assert_eq!(self.call(&[b"SET", key, value]), b"+OK\r\n");
    }

    fn get(&mut self, key: &[u8]) -> u8 {
        let reply = self.call(&[b"GET", key]);
        assert!(reply.starts_with(b"$64\r\n") && reply.len() == 71, "{reply:?}");
        reply[5]
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
