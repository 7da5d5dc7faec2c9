//! Archives that rkyv makes of the SDK's types, read and written by their layout alone.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::time::Duration;

use denizen::StateType;
use denizen::rkyv::{self, rancor, util::AlignedVec};
use denizen::state;
use denizen_layout::{Layout, Writing, from_json, to_json};
use proptest::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

type Made = std::result::Result<(), TestCaseError>;

const DERIVED: Writing = Writing { derived_order: true };

fn layout<T: StateType>() -> Layout {
    let layout = Layout::parse(&T::layout()).unwrap();
    assert_eq!(layout.fingerprint(), T::fingerprint(), "{}", T::layout());
    layout
}

fn archive<T: StateType>(value: &T) -> AlignedVec {
    rkyv::to_bytes::<rancor::Error>(value).unwrap()
}

fn restore<T: StateType>(bytes: &[u8]) -> T {
    let mut aligned = AlignedVec::<16>::new();
    aligned.extend_from_slice(bytes);
    rkyv::from_bytes::<T, rancor::Error>(&aligned).unwrap()
}

/// There and back; gives the JSON.
fn around<T: StateType + PartialEq + Debug>(value: &T, same_bytes: bool) -> Value {
    let layout = layout::<T>();
    let bytes = archive(value);
    let json = to_json(&layout, &bytes).unwrap();
    // Through text, as people send it.
    let sent: Value = serde_json::from_str(&json.to_string()).unwrap();
    let made = from_json(&layout, &sent, DERIVED).unwrap_or_else(|error| panic!("{error} in {json}"));
    assert_eq!(&restore::<T>(&made), value, "{json}");
    if same_bytes {
        assert_eq!(made, bytes.as_slice(), "{json}");
    } else {
        assert_eq!(made.len(), bytes.len(), "{json}");
    }
    json
}

/// As [`around`], and the JSON is what serde makes of it.
fn as_serde<T: StateType + PartialEq + Debug + Serialize>(value: &T, same_bytes: bool) {
    let json = around(value, same_bytes);
    assert_eq!(json, serde_json::to_value(value).unwrap());
}

/// Whatever happens to the bytes: an answer, and one wherever rkyv itself would give one.
fn flipped<T: StateType>(value: &T, flips: &[(usize, u8)]) -> Made {
    let layout = layout::<T>();
    let mut bytes = archive(value);
    let len = bytes.len();
    for (at, bits) in flips {
        if len > 0 {
            bytes[at % len] ^= bits;
        }
    }
    let shown = to_json(&layout, &bytes);
    if let Err(error) = &shown
        && rkyv::access::<T::Archived, rancor::Error>(&bytes).is_ok()
    {
        // rkyv takes these; a map with a key twice is none, though.
        prop_assert!(error.to_string().contains("twice"), "{error}");
    }
    if let Ok(json) = shown {
        // It may not be writable (keys in a wrong order are put right), but never panics.
        let _ = from_json(&layout, &json, DERIVED);
    }
    for end in [0, 1, len / 2, len.saturating_sub(1)] {
        let _ = to_json(&layout, &bytes[..end.min(len)]);
    }
    Ok(())
}

#[state]
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Plain {
    small: (u8, i8, u16, i16),
    middle: (u32, i32, char, bool),
    large: (u64, i64, f64),
    text: String,
    nothing: (),
}

#[state]
#[derive(Debug, Clone, PartialEq, Serialize)]
enum Shape {
    Point,
    Circle(f64),
    Line(i32, i64),
    Box { corner: (u8, u32), name: String },
    Empty {},
    Bare(),
    Inner(Option<Box<Shape>>),
}

#[state]
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Wrapped(String);

#[state]
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Pair(u8, Wrapped);

#[state]
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Unit;

#[state]
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Tree {
    shape: Shape,
    best: Option<Shape>,
    wrapped: Wrapped,
    pair: Pair,
    unit: Unit,
    outcome: Result<u8, String>,
    after: Duration,
    children: Vec<Tree>,
    by_name: BTreeMap<String, Tree>,
}

#[state]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[rkyv(derive(PartialEq, Eq, PartialOrd, Ord, Hash))]
enum Kind {
    Late,
    Early,
    Never,
}

#[state]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[rkyv(derive(PartialEq, Eq, PartialOrd, Ord, Hash))]
struct Place {
    kind: Kind,
    row: Option<u16>,
    name: String,
}

#[state]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(derive(PartialEq, Eq, PartialOrd, Ord, Hash))]
enum Only {
    One(u8),
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,6}", ".{7,40}"]
}

fn plain() -> impl Strategy<Value = Plain> {
    let real = any::<f64>().prop_map(|real| if real.is_finite() { real } else { 0.5 });
    let large = (any::<u64>(), any::<i64>(), real);
    (any::<(u8, i8, u16, i16)>(), any::<(u32, i32, char, bool)>(), large, text())
        .prop_map(|(small, middle, large, text)| Plain { small, middle, large, text, nothing: () })
}

fn shape() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Point),
        Just(Shape::Empty {}),
        Just(Shape::Bare()),
        Just(Shape::Inner(None)),
        (-1e9..1e9).prop_map(Shape::Circle),
        any::<(i32, i64)>().prop_map(|(a, b)| Shape::Line(a, b)),
        (any::<(u8, u32)>(), text()).prop_map(|(corner, name)| Shape::Box { corner, name }),
    ];
    leaf.prop_recursive(4, 5, 1, |inner| inner.prop_map(|inner| Shape::Inner(Some(Box::new(inner)))))
}

fn tree() -> impl Strategy<Value = Tree> {
    let bare = (shape(), proptest::option::of(shape()), text(), any::<u8>(), any::<u32>());
    let bare = bare.prop_map(|(shape, best, text, number, nanos)| Tree {
        shape,
        best,
        wrapped: Wrapped(text.clone()),
        pair: Pair(number, Wrapped(text.clone())),
        unit: Unit,
        outcome: if number % 2 == 0 { Ok(number) } else { Err(text) },
        after: Duration::new(u64::from(nanos), nanos % 1_000_000_000),
        children: Vec::new(),
        by_name: BTreeMap::new(),
    });
    bare.prop_recursive(3, 24, 4, |inner| {
        let children = prop::collection::vec(inner.clone(), 0..4);
        let by_name = prop::collection::btree_map(text(), inner.clone(), 0..4);
        (inner, children, by_name).prop_map(|(tree, children, by_name)| Tree { children, by_name, ..tree })
    })
}

fn place() -> impl Strategy<Value = Place> {
    let kind = prop_oneof![Just(Kind::Late), Just(Kind::Early), Just(Kind::Never)];
    (kind, any::<Option<u16>>(), text()).prop_map(|(kind, row, name)| Place { kind, row, name })
}

fn flips() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((any::<usize>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(60),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn structs_and_enums_look_as_serde_writes_them(plain in plain(), shape in shape(), tree in tree()) {
        as_serde(&plain, true);
        as_serde(&shape, true);
        as_serde(&tree, true);
    }

    #[test]
    fn sequences_look_as_serde_writes_them(
        numbers in any::<Vec<u32>>(),
        texts in prop::collection::vec_deque(text(), 0..20),
        shapes in prop::array::uniform3(shape()),
        nested in any::<Vec<Vec<(u8, Option<i64>)>>>(),
        ordered in any::<BTreeSet<i16>>(),
    ) {
        as_serde(&numbers, true);
        as_serde(&texts, true);
        as_serde(&shapes, true);
        as_serde(&nested, true);
        as_serde(&ordered, true);
    }

    #[test]
    fn b_trees_of_every_size_are_those_of_rkyv(len in 0_usize..700, seed in any::<u32>()) {
        let map: BTreeMap<u32, String> =
            (0..len as u32).map(|n| ((n ^ seed).wrapping_mul(2_654_435_761), n.to_string())).collect();
        as_serde(&map, true);
        let bytes = from_json(&layout::<BTreeMap<u32, String>>(), &serde_json::to_value(&map).unwrap(), DERIVED).unwrap();
        let mut aligned = AlignedVec::<16>::new();
        aligned.extend_from_slice(&bytes);
        type Archived = rkyv::collections::btree_map::ArchivedBTreeMap<rkyv::rend::u32_le, rkyv::string::ArchivedString>;
        let archived = rkyv::access::<Archived, rancor::Error>(&aligned).unwrap();
        for (key, value) in &map {
            prop_assert_eq!(archived.get(&rkyv::rend::u32_le::from_native(*key)).unwrap().as_str(), value);
        }
    }

    #[test]
    fn hash_tables_find_what_was_written_by_layout(
        texts in prop::collection::hash_map(text(), any::<u16>(), 0..90),
        ints in prop::collection::hash_map(any::<i64>(), text(), 0..90),
        odd in prop::collection::hash_set((any::<u8>(), any::<bool>(), any::<char>()), 0..40),
        wide in prop::collection::hash_set(any::<u128>(), 0..40),
        places in prop::collection::hash_set(place(), 0..40),
    ) {
        as_serde(&texts, false);
        as_serde(&ints, false);
        around(&odd, false);
        around(&wide, false);
        around(&places, false);
        let of = |json: Value, layout: &Layout| {
            let mut aligned = AlignedVec::<16>::new();
            aligned.extend_from_slice(&from_json(layout, &json, DERIVED).unwrap());
            aligned
        };
        let made = of(serde_json::to_value(&texts).unwrap(), &layout::<HashMap<String, u16>>());
        let table = rkyv::access::<rkyv::Archived<HashMap<String, u16>>, rancor::Error>(&made).unwrap();
        for (key, value) in &texts {
            prop_assert_eq!(table.get(key.as_str()).unwrap().to_native(), *value);
        }
        let made = of(serde_json::to_value(&ints).unwrap(), &layout::<HashMap<i64, String>>());
        let table = rkyv::access::<rkyv::Archived<HashMap<i64, String>>, rancor::Error>(&made).unwrap();
        for (key, value) in &ints {
            prop_assert_eq!(table.get(&rkyv::rend::i64_le::from_native(*key)).unwrap().as_str(), value);
        }
        let made = of(to_json(&layout::<HashSet<Place>>(), &archive(&places)).unwrap(), &layout::<HashSet<Place>>());
        let table = rkyv::access::<rkyv::Archived<HashSet<Place>>, rancor::Error>(&made).unwrap();
        for place in &places {
            let archived = archive(place);
            let archived = rkyv::access::<ArchivedPlace, rancor::Error>(&archived).unwrap();
            prop_assert!(table.contains(archived), "{place:?} is not found");
        }
    }

    #[test]
    fn keys_hash_as_rkyv_hashes_them(
        lists in prop::collection::hash_map(any::<Vec<u8>>(), Just(()), 1..20),
        ints in prop::collection::hash_map(any::<[i32; 3]>(), Just(()), 1..20),
        deques in prop::collection::hash_map(any::<VecDeque<u16>>(), Just(()), 1..20),
        nested in prop::collection::hash_map(any::<Option<(Box<u64>, Vec<String>)>>(), Just(()), 1..20),
        several in prop::collection::hash_map(
            (any::<Duration>(), any::<Result<i8, bool>>(), any::<i32>().prop_map(|n| n as isize)),
            Just(()),
            1..20,
        ),
        trees in prop::collection::hash_map(any::<BTreeMap<u8, char>>(), Just(()), 1..20),
        kinds in prop::collection::hash_map(any::<u8>().prop_map(Only::One), Just(()), 1..20),
        singles in prop::collection::hash_map(any::<(u32,)>(), Just(()), 1..20),
        signed in prop::collection::hash_map(any::<(i8, i16, i128)>(), Just(()), 1..20),
    ) {
        same_places(&lists)?;
        same_places(&ints)?;
        same_places(&deques)?;
        same_places(&nested)?;
        same_places(&several)?;
        same_places(&trees)?;
        same_places(&kinds)?;
        same_places(&singles)?;
        same_places(&signed)?;
    }

    #[test]
    fn maps_with_any_keys_come_around(
        kinds in prop::collection::btree_map(place().prop_map(|place| place.kind), any::<bool>(), 0..4),
        places in prop::collection::btree_map(place(), shape(), 0..12),
        pairs in any::<BTreeMap<(bool, i8), String>>(),
        bools in any::<BTreeMap<bool, char>>(),
        chars in any::<BTreeMap<char, u8>>(),
        wide in any::<BTreeMap<i128, u128>>(),
        signed in any::<BTreeMap<i32, ()>>(),
    ) {
        as_serde(&kinds, true);
        around(&places, true);
        around(&pairs, true);
        as_serde(&bools, true);
        as_serde(&chars, true);
        around(&wide, true);
        as_serde(&signed, true);
    }

    #[test]
    fn floats_keep_their_value(single in any::<f32>(), double in any::<f64>()) {
        let json = around(&[if single.is_nan() { 0.0 } else { single }], true);
        prop_assert!(single.is_nan() || single.is_infinite() || json[0].to_string().parse::<f32>().unwrap() == single);
        around(&[if double.is_nan() { 0.0 } else { double }], true);
    }

    #[test]
    fn damage_is_an_error_or_another_value_and_never_a_panic(
        tree in tree(),
        plain in plain(),
        table in prop::collection::hash_map(text(), prop::collection::vec(shape(), 0..3), 0..12),
        sorted in prop::collection::btree_map(text(), any::<Option<Vec<u16>>>(), 0..40),
        flips in flips(),
    ) {
        flipped(&tree, &flips)?;
        flipped(&plain, &flips)?;
        flipped(&table, &flips)?;
        flipped(&sorted, &flips)?;
    }

    #[test]
    fn noise_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = to_json(&layout::<Tree>(), &bytes);
        let _ = to_json(&layout::<HashMap<Vec<u8>, BTreeMap<u8, Tree>>>(), &bytes);
        let _ = to_json(&layout::<HashMap<(), ()>>(), &bytes);
    }

    #[test]
    fn json_of_another_type_is_refused_without_a_panic(tree in tree(), shape in shape()) {
        let (tree, shape) = (serde_json::to_value(&tree).unwrap(), serde_json::to_value(&shape).unwrap());
        let mut some = vec![tree, shape, json!(null), json!([[]]), json!({"Some": {}}), json!("text"), json!(-1.5)];
        some.push(json!(some.clone()));
        for value in &some {
            for writing in [DERIVED, Writing::default()] {
                let _ = from_json(&layout::<Tree>(), value, writing);
                let _ = from_json(&layout::<HashMap<Place, Shape>>(), value, writing);
                let _ = from_json(&layout::<HashSet<Vec<Option<Only>>>>(), value, writing);
                let _ = from_json(&layout::<BTreeMap<Kind, [Option<()>; 2]>>(), value, writing);
            }
        }
    }
}

/// The table written by layout has each key in a place where rkyv's own, of the same order of insertion, would put it: rkyv's reader
/// compares the control byte, which is a part of the hash, and begins where the hash says.
fn same_places<K>(map: &HashMap<K, ()>) -> Made
where
    K: StateType + std::hash::Hash + Eq + Clone + Debug,
    HashMap<K, ()>: StateType,
{
    let layout = layout::<HashMap<K, ()>>();
    // One entry is in the one place that its hash says.
    for key in map.keys() {
        let one = HashMap::from([(key.clone(), ())]);
        let bytes = archive(&one);
        let json = to_json(&layout, &bytes).unwrap();
        let made = from_json(&layout, &json, DERIVED).unwrap();
        prop_assert_eq!(&made, bytes.as_slice(), "{:?}", key);
    }
    let bytes = archive(map);
    let made = from_json(&layout, &to_json(&layout, &bytes).unwrap(), DERIVED).unwrap();
    prop_assert!(restore::<HashMap<K, ()>>(&made) == *map);
    Ok(())
}

#[test]
fn bytes_are_base64_and_may_be_given_as_numbers() {
    #[state]
    #[derive(Debug, PartialEq)]
    struct Bytes {
        list: Vec<u8>,
        array: [u8; 3],
        deque: VecDeque<u8>,
        signed: Vec<i8>,
    }
    let value = Bytes { list: vec![0, 255], array: [1, 2, 3], deque: [9].into(), signed: vec![-1] };
    let json = around(&value, true);
    assert_eq!(json, json!({"list": "AP8=", "array": "AQID", "deque": "CQ==", "signed": [-1]}));
    let numbers = json!({"list": [0, 255], "array": [1, 2, 3], "deque": [9], "signed": [-1]});
    assert_eq!(restore::<Bytes>(&from_json(&layout::<Bytes>(), &numbers, DERIVED).unwrap()), value);
    let refused = |value: Value| from_json(&layout::<Bytes>(), &value, DERIVED).unwrap_err().to_string();
    let message = refused(json!({"list": [256], "array": "AQID", "deque": "", "signed": []}));
    assert!(message.starts_with(".list: a whole number of 8 bits"), "{message}");
    let message = refused(json!({"list": "", "array": "AQI=", "deque": "", "signed": []}));
    assert!(message.starts_with(".array: 3 items are expected, not 2"), "{message}");
}

#[test]
fn what_json_has_no_word_for_is_text() {
    assert_eq!(around(&(u64::MAX, i64::MIN), true), json!([u64::MAX, i64::MIN]));
    assert_eq!(around(&u64::MAX, true).to_string(), "18446744073709551615");
    assert_eq!(around(&u128::MAX, true), json!(u128::MAX.to_string()));
    assert_eq!(around(&i128::MIN, true), json!(i128::MIN.to_string()));
    assert_eq!(around(&[f64::INFINITY, f64::NEG_INFINITY, -0.0], true), json!(["inf", "-inf", -0.0]));
    let json = to_json(&layout::<f32>(), &archive(&f32::NAN)).unwrap();
    assert_eq!(json, json!("NaN"));
    assert!(restore::<f32>(&from_json(&layout::<f32>(), &json, DERIVED).unwrap()).is_nan());
    assert_eq!(around(&0.1_f32, true).to_string(), "0.1");
    assert_eq!(around(&(7_u8,), true), json!([7]));
    assert_eq!(around(&(u32::MAX as usize, -3_isize), true), json!([u32::MAX, -3]));
    let wide = layout::<(u64, i128, u128)>();
    let made = from_json(&wide, &json!(["18446744073709551615", -5, 5]), DERIVED).unwrap();
    assert_eq!(restore::<(u64, i128, u128)>(&made), (u64::MAX, -5, 5));
}

#[test]
fn options_of_what_may_be_null_say_what_they_are() {
    type Nested = Vec<Option<Option<u8>>>;
    let nested: Nested = vec![None, Some(None), Some(Some(1))];
    assert_eq!(around(&nested, true), json!([null, {"Some": null}, {"Some": 1}]));
    assert_eq!(around(&vec![None, Some(())], true), json!([null, {"Some": null}]));
    assert_eq!(around(&vec![None, Some(Unit)], true), json!([null, {"Some": null}]));
    assert_eq!(around(&Some(Box::new(Some(2_u8))), true), json!({"Some": 2}));
}

#[test]
fn absent_options_are_none_and_everything_else_is_missed() {
    #[state]
    #[derive(Debug, PartialEq)]
    struct Some2 {
        a: Option<u8>,
        b: u8,
    }
    let layout = layout::<Some2>();
    let write = |json: Value| from_json(&layout, &json, DERIVED);
    assert_eq!(restore::<Some2>(&write(json!({"b": 2})).unwrap()), Some2 { a: None, b: 2 });
    assert_eq!(write(json!({"a": 1})).unwrap_err().to_string(), "the value: the field `b` is missing");
    assert_eq!(write(json!({"b": 1, "c": 1})).unwrap_err().to_string(), "the value: there is no field `c`");
    let message = write(json!({"b": 256})).unwrap_err().to_string();
    assert_eq!(message, ".b: a whole number of 8 bits from 0 on is expected, not 256");
}

#[test]
fn errors_say_where() {
    let message = |value: Value| from_json(&layout::<Tree>(), &value, DERIVED).unwrap_err().to_string();
    let tree = Tree {
        shape: Shape::Point,
        best: None,
        wrapped: Wrapped("w".into()),
        pair: Pair(1, Wrapped("x".into())),
        unit: Unit,
        outcome: Ok(1),
        after: Duration::ZERO,
        children: Vec::new(),
        by_name: BTreeMap::new(),
    };
    let mut outer = serde_json::to_value(&tree).unwrap();
    outer["children"] = json!([outer.clone(), outer.clone()]);
    outer["children"][1]["shape"] = json!({"Line": [1, "2x"]});
    assert_eq!(
        message(outer.clone()),
        ".children[1].shape.Line.1: a whole number of 64 bits with a sign is expected, not \"2x\""
    );
    outer["children"][1]["shape"] = json!("Triangle");
    assert_eq!(message(outer), ".children[1].shape: `Shape` has no variant `Triangle`");
}

#[test]
fn the_order_of_marked_keys_is_not_guessed() {
    let map = BTreeMap::from([(Kind::Late, 1_u8), (Kind::Early, 2)]);
    let layout = layout::<BTreeMap<Kind, u8>>();
    let json = to_json(&layout, &archive(&map)).unwrap();
    assert_eq!(json, json!({"Late": 1, "Early": 2}));
    let message = from_json(&layout, &json, Writing::default()).unwrap_err().to_string();
    assert!(message.contains("`Kind` is a key"), "{message}");
    from_json(&layout, &json!({"Late": 1}), Writing::default()).unwrap();
    let message = from_json(&layout, &json!([["Late", 1], ["Late", 2]]), DERIVED).unwrap_err().to_string();
    assert!(message.contains("twice"), "{message}");
}

#[test]
fn work_is_bounded_however_often_bytes_are_pointed_to() {
    // Lists of lists of lists, all of which point to the same place.
    let text = "Vec<".repeat(12) + "u16" + &">".repeat(12);
    let bomb = Layout::parse(&text).unwrap();
    let mut bytes = Vec::new();
    let mut target = 0_i32;
    for _ in 0..11 {
        let begin = i32::try_from(bytes.len()).unwrap();
        for n in 0..50 {
            bytes.extend_from_slice(&(target - (begin + n * 8)).to_le_bytes());
            bytes.extend_from_slice(&50_u32.to_le_bytes());
        }
        target = begin;
    }
    let root = i32::try_from(bytes.len()).unwrap();
    bytes.extend_from_slice(&(target - root).to_le_bytes());
    bytes.extend_from_slice(&50_u32.to_le_bytes());
    let error = to_json(&bomb, &bytes).unwrap_err();
    assert!(error.to_string().contains("too often"), "{error}");
    // What takes no bytes.
    let error = to_json(&Layout::parse("Vec<()>").unwrap(), &[0, 0, 0, 0, 255, 255, 255, 255]).unwrap_err();
    assert!(error.to_string().contains("too often"), "{error}");
    let error = to_json(&Layout::parse("[(); 99999999999]").unwrap(), &[]).unwrap_err();
    assert!(error.to_string().contains("too often"), "{error}");
    // A pointer to itself.
    let endless = Layout::parse("struct A { next: Box<^A> }").unwrap();
    assert!(to_json(&endless, &[0, 0, 0, 0]).unwrap_err().to_string().contains("nested"));
    assert!(from_json(&Layout::parse("struct A(Box<^A>)").unwrap(), &json!(1), DERIVED).is_err());
    assert!(from_json(&Layout::parse("HashSet<struct A(Box<^A>)>").unwrap(), &json!([1]), DERIVED).is_err());
}
