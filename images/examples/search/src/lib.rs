//! Full-text search over the texts that a process was given, ranked by BM25.
//!
//! The state is laid out so that a query reads only what it needs:
//!
//! | key | record |
//! |---|---|
//! | `corpus` | how much text there is: `Corpus` |
//! | `document/NAME` | what belongs to a document, to take it out again: `Document` |
//! | `passage/ID/N` | the text of its N-th passage: `Passage` |
//! | `word/WORD/ID` | where a word stands in one document: `Postings` |
//!
//! A query scans `word/WORD/` for each of its words, and reads the few passages that it answers with. Putting
//! a text in never rewrites what another text wrote.

mod text;

use denizen::prelude::*;
use std::collections::{BTreeMap, HashMap};
use text::{name_and_text, passages, words};

/// How much text there is. BM25 weighs a word by how rare it is, and a passage by how long.
#[state]
#[derive(Default)]
struct Corpus {
    documents: u64,
    passages: u64,
    words: u64,
    next_id: u32,
}

#[state]
struct Document {
    id: u32,
    passages: u32,
    words: u64,
    /// Every distinct word: with the id, the keys of its postings.
    vocabulary: Vec<String>,
}

#[state]
struct Passage {
    document: String,
    line: u64,
    text: String,
}

#[state]
#[derive(Default)]
struct Postings {
    postings: Vec<Posting>,
}

#[payload]
struct Posting {
    passage: u32,
    /// How often the word stands in the passage.
    times: u32,
    /// How many words the passage has.
    of: u32,
}

#[derive(Serialize)]
struct Ingested {
    document: String,
    passages: u32,
    words: u64,
    replaced: bool,
}

#[derive(Serialize)]
struct Answers {
    answers: Vec<Answer>,
    /// How many passages have at least one of the words.
    found: usize,
}

#[derive(Serialize)]
struct Answer {
    document: String,
    line: u64,
    score: f64,
    text: String,
}

#[derive(Serialize)]
struct Listed {
    document: String,
    passages: u32,
    words: u64,
}

/// Answers with at most this many passages.
const MOST_ANSWERS: usize = 5;

/// Puts a text in. The body is UTF-8 text; its name is the `name` of the content type (`text/plain;
/// name=alice.txt`), or else its first line. A text of the same name is replaced.
#[function]
fn ingest(cx: &mut Context, body: &str) -> Result<Json<Ingested>> {
    let (name, text) = name_and_text(cx.content_type(), body)?;
    let replaced = take_out(cx, &name)?;
    let mut corpus = cx.edit_or_default::<Corpus>("corpus")?;
    let id = corpus.next_id;
    corpus.next_id =
        id.checked_add(1).ok_or_else(|| failed("this process has numbered all the texts it can"))?;

    let mut index: BTreeMap<String, Postings> = BTreeMap::new();
    let (mut count, mut total) = (0, 0);
    for (line, text) in passages(text) {
        let of = index_passage(&mut index, count, text)?;
        let passage = Passage { document: name.clone(), line, text: text.to_owned() };
        cx.put(passage_key(id, count), &passage)?;
        (count, total) = (count + 1, total + u64::from(of));
    }
    for (word, postings) in &index {
        cx.put(posting_key(word, id), postings)?;
    }
    (corpus.documents, corpus.passages) = (corpus.documents + 1, corpus.passages + u64::from(count));
    corpus.words += total;
    let vocabulary = index.into_keys().collect();
    cx.put(document_key(&name), &Document { id, passages: count, words: total, vocabulary })?;
    println!("{name}: {count} passages, {total} words");
    Ok(Json(Ingested { document: name, passages: count, words: total, replaced }))
}

/// Adds the words of a passage to the index of its document, and says how many they are.
fn index_passage(index: &mut BTreeMap<String, Postings>, passage: u32, text: &str) -> Result<u32> {
    let mut times: HashMap<String, u32> = HashMap::new();
    for word in words(text) {
        *times.entry(word).or_default() += 1;
    }
    let of = times.values().sum();
    for (word, times) in times {
        index.entry(word).or_default().postings.push(Posting { passage, times, of });
    }
    Ok(of)
}

/// Takes a text out again, by its name in the body.
#[function]
fn forget(cx: &mut Context, name: &str) -> Result<()> {
    match take_out(cx, name)? {
        true => Ok(()),
        false => Err(bad_input(format_args!("there is no text `{name}` here"))),
    }
}

/// Deletes what belongs to a document; `false` if there is none.
fn take_out(cx: &mut Context, name: &str) -> Result<bool> {
    let Some(document) = cx.get::<Document>(document_key(name))? else { return Ok(false) };
    let (id, passages) = (document.id.to_native(), document.passages.to_native());
    for word in document.vocabulary.iter() {
        cx.delete(posting_key(word, id))?;
    }
    for passage in 0..passages {
        cx.delete(passage_key(id, passage))?;
    }
    cx.delete(document_key(name))?;
    let mut corpus = cx.edit_or_default::<Corpus>("corpus")?;
    corpus.documents -= 1;
    corpus.passages -= u64::from(passages);
    corpus.words -= document.words.to_native();
    Ok(true)
}

/// The passages that fit the words of the body best, best first.
#[function]
fn query(cx: &Context, body: &str) -> Result<Json<Answers>> {
    let mut wanted: Vec<String> = words(body).collect();
    wanted.sort();
    wanted.dedup();
    if wanted.is_empty() {
        return Err(bad_input("send the words to look for"));
    }
    let mut scores: HashMap<(u32, u32), f64> = HashMap::new();
    if let Some(corpus) = cx.get::<Corpus>("corpus")? {
        for word in &wanted {
            add_scores(cx, corpus, word, &mut scores)?;
        }
    }
    let found = scores.len();
    let mut ranked: Vec<_> = scores.into_iter().collect();
    // Best first; among equals the text that came first.
    ranked.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
    let best = ranked.into_iter().take(MOST_ANSWERS);
    let answers = best.map(|((id, passage), score)| answer(cx, id, passage, score)).collect::<Result<_>>()?;
    Ok(Json(Answers { answers, found }))
}

/// Adds what one word says for each passage that has it: Okapi BM25 (Robertson, Walker et al., TREC-3, 1994),
/// with the usual constants.
fn add_scores(
    cx: &Context,
    corpus: &ArchivedCorpus,
    word: &str,
    scores: &mut HashMap<(u32, u32), f64>,
) -> Result<()> {
    const SATURATION: f64 = 1.2;
    const LENGTH: f64 = 0.75;
    let prefix = format!("word/{word}/");
    let mut lists = Vec::new();
    for entry in cx.scan(&prefix)? {
        lists.push((id_of(&entry.key()[prefix.len()..])?, entry.get::<Postings>()?));
    }
    let passages = number(corpus.passages.to_native());
    let having: usize = lists.iter().map(|(_, list)| list.postings.len()).sum();
    let having = number(u64::try_from(having)?);
    let rarity = (1.0 + (passages - having + 0.5) / (having + 0.5)).ln();
    let average = number(corpus.words.to_native()) / passages.max(1.0);
    for (id, list) in lists {
        for posting in list.postings.iter() {
            let (times, of) = (f64::from(posting.times.to_native()), f64::from(posting.of.to_native()));
            let weight = times + SATURATION * (1.0 - LENGTH + LENGTH * of / average);
            *scores.entry((id, posting.passage.to_native())).or_default() +=
                rarity * times * (SATURATION + 1.0) / weight;
        }
    }
    Ok(())
}

fn answer(cx: &Context, id: u32, passage: u32, score: f64) -> Result<Answer> {
    let found = cx.get::<Passage>(passage_key(id, passage))?;
    let found = found.ok_or_else(|| failed("the index names a passage that is not there"))?;
    Ok(Answer {
        document: found.document.to_string(),
        line: found.line.to_native(),
        score: (score * 1000.0).round() / 1000.0,
        text: found.text.to_string(),
    })
}

/// The texts that are here.
#[function]
fn documents(cx: &Context) -> Result<Json<Vec<Listed>>> {
    let mut listed = Vec::new();
    for entry in cx.scan("document/")? {
        let (name, document) = (&entry.key()["document/".len()..], entry.get::<Document>()?);
        listed.push(Listed {
            document: String::from_utf8_lossy(name).into_owned(),
            passages: document.passages.to_native(),
            words: document.words.to_native(),
        });
    }
    Ok(Json(listed))
}

fn document_key(name: &str) -> String {
    format!("document/{name}")
}

fn passage_key(id: u32, passage: u32) -> String {
    format!("passage/{id:08x}/{passage:08x}")
}

fn posting_key(word: &str, id: u32) -> String {
    format!("word/{word}/{id:08x}")
}

fn id_of(key: &[u8]) -> Result<u32> {
    Ok(u32::from_str_radix(std::str::from_utf8(key)?, 16)?)
}

/// A count for arithmetic; beyond 2^53 a rank does not need the last digit.
#[expect(clippy::cast_precision_loss, reason = "ranks are estimates")]
fn number(count: u64) -> f64 {
    count as f64
}

denizen::export!(ingest, query, documents, forget);

#[cfg(test)]
mod tests;
