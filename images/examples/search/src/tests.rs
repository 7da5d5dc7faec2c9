//! Searching a real text, in the process in memory that the SDK brings.

use denizen::FailKind;
use denizen::testing::{Input, Process, process};
use serde::Deserialize;

const HARBOUR: &str = include_str!("../tests/harbour.txt");
const OTHER: &str = "The lamp of the mine\n\nA miner's lamp is small. It hangs from a nail.\n";

#[derive(Deserialize)]
struct Answers {
    answers: Vec<Answer>,
    found: usize,
}

#[derive(Deserialize, Clone, Debug, PartialEq)]
struct Answer {
    document: String,
    line: u64,
    score: f64,
    text: String,
}

fn ingest(process: &mut Process, name: &str, text: &str) -> String {
    let input = Input::new(text).content_type(&format!("text/plain; name={name}"));
    process.call("ingest", input).unwrap().text().to_owned()
}

fn query(process: &mut Process, words: &str) -> Answers {
    process.call("query", words).unwrap().json()
}

#[test]
fn the_best_passage_comes_first() {
    let mut library = process!();
    let told = ingest(&mut library, "harbour", HARBOUR);
    assert!(told.starts_with(r#"{"document":"harbour","passages":10,"words":5"#), "{told}");
    ingest(&mut library, "mine", OTHER);

    let lamp = query(&mut library, "who winds the LAMP of the lighthouse?");
    let best = &lamp.answers[0];
    assert!((&*best.document, best.line) == ("harbour", 9) && best.text.contains("lit the lamp"), "{best:?}");
    assert!(lamp.answers.windows(2).all(|pair| pair[0].score >= pair[1].score));
    assert!(lamp.answers.len() == 5 && lamp.found > 5);

    for (words, begins) in [
        ("smørrebrød", "Those who have an hour"),
        ("ÞÓRÐUR", "Below the lighthouse"),
        ("灯台", "En liten ordlista"),
        ("storm 1913", "South of the market"),
        ("sheep", "The ferry to the islands"),
        ("nail", "A miner's lamp"),
    ] {
        assert!(query(&mut library, words).answers[0].text.starts_with(begins), "{words}");
    }
    assert_eq!(query(&mut library, "dragon").found, 0);
}

#[test]
fn a_rare_word_weighs_more_than_a_frequent_one() {
    let mut library = process!();
    ingest(&mut library, "harbour", HARBOUR);
    let (the, rope) = (query(&mut library, "the"), query(&mut library, "rope"));
    assert_eq!((the.found, rope.found), (10, 1));
    assert!(rope.answers[0].score > 5.0 * the.answers[0].score);
}

#[test]
fn the_same_name_replaces_and_forget_leaves_nothing() {
    let mut library = process!();
    ingest(&mut library, "mine", OTHER);
    let alone = (library.keys().len(), query(&mut library, "lamp").answers);

    ingest(&mut library, "harbour", OTHER);
    assert!(ingest(&mut library, "harbour", HARBOUR).ends_with(r#""replaced":true}"#));
    assert_eq!(query(&mut library, "nail").found, 1, "the first text of that name is gone");
    library.call("forget", "harbour").unwrap();
    assert_eq!((library.keys().len(), query(&mut library, "lamp").answers), alone);
    assert_eq!(
        library.call("documents", "").unwrap().text(),
        r#"[{"document":"mine","passages":2,"words":15}]"#
    );
    library.call("forget", "mine").unwrap();
    assert_eq!(library.keys(), ["corpus"]);
    assert_eq!(library.call("forget", "mine").unwrap_err().kind, FailKind::BadInput);
}

#[test]
fn curl_without_a_content_type_of_its_own_works() {
    let mut library = process!();
    let input = Input::new(HARBOUR).content_type("application/x-www-form-urlencoded");
    library.call("ingest", input).unwrap();
    assert_eq!(query(&mut library, "cod").answers[0].document, "A Walk Round the Harbour of Sandvík");
}

#[test]
fn what_is_no_text_is_the_callers_fault_and_changes_nothing() {
    let mut library = process!();
    ingest(&mut library, "mine", OTHER);
    let before = library.keys();
    for body in [&[b'a', 0xff, b'b'][..], b"", b" \n \n"] {
        assert_eq!(library.call("ingest", body).unwrap_err().kind, FailKind::BadInput);
    }
    assert_eq!(library.call("query", " ?! ").unwrap_err().kind, FailKind::BadInput);
    assert_eq!(library.keys(), before);
}
