//! `denizen token`: tokens for the data port, and the keys that sign them. All of it is files in the node's directory; no node need run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use denizen_agent::{Keys, KeysError};
use denizen_protocol::token::{self, Claims};
use serde_json::json;

use crate::{
    cli::{self, Everywhere},
    failure::{Failure, parted},
    place,
    terminal::{Cell, Paint, Table, Terminal},
    units,
};

/// Clocks are compared without leeway, so a token began a little while ago.
const LEEWAY_S: u64 = 60;

pub(crate) fn run(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::Token) -> Result<(), Failure> {
    let dir = place::node_directory(everywhere.dir.as_deref())?;
    let keys = Keys::open(&dir).map_err(refused)?;
    match typed {
        cli::Token::Issue(typed) => issue(terminal, &keys, typed),
        cli::Token::Keys => list(terminal, &keys),
        cli::Token::Rotate(typed) => rotate(terminal, &keys, typed.revoke),
    }
}

fn issue(terminal: &Terminal, keys: &Keys, typed: &cli::TokenIssue) -> Result<(), Failure> {
    // A time below a second would leave none.
    let ttl_s = typed.ttl.as_secs().max(1);
    let (not_before_s, expires_s) = holds_for(ttl_s);
    let claims = Claims {
        app: typed.app.clone(),
        process: typed.process.clone(),
        functions: (!typed.functions.is_empty()).then(|| typed.functions.clone()),
        not_before_s,
        expires_s,
    };
    let text = token::to_text(&keys.issue(&claims).map_err(refused)?);
    if terminal.json {
        return terminal.document(&json!({
            "token": text, "app": claims.app, "process": claims.process, "functions": claims.functions,
            "not_before_s": claims.not_before_s, "expires_s": claims.expires_s,
        }));
    }
    terminal.answer(&text)?;
    let whose =
        claims.process.as_deref().map_or("any process".to_owned(), |process| format!("process {process}"));
    let what = claims.functions.map_or("any function".to_owned(), |functions| functions.join(", "));
    let how_long = units::duration(Duration::from_secs(ttl_s));
    let said = format!("holds for {how_long}: {what} of {whose} of {}", claims.app);
    terminal.say(terminal.err.dim(&said));
    Ok(())
}

/// From when and until when a token holds that is to hold for `ttl_s` from now on, in seconds since 1970.
pub(super) fn holds_for(ttl_s: u64) -> (u64, u64) {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    (now_s.saturating_sub(LEEWAY_S), now_s.saturating_add(ttl_s))
}

fn list(terminal: &Terminal, keys: &Keys) -> Result<(), Failure> {
    let ring = keys.ring().map_err(refused)?;
    // A node that only verifies has none.
    let signing = keys.signing().ok().map(|key| key.public().id());
    if terminal.json {
        let list = ring.keys().iter().map(|key| {
            json!({ "id": key.id().to_string(), "public": key.to_string(), "signs": Some(key.id()) == signing })
        });
        return terminal.document(&json!({ "keys": list.collect::<Vec<_>>() }));
    }
    let mut table = Table::with_head(&["KEY", "SIGNS", "PUBLIC"]);
    for key in ring.keys() {
        let signs = if Some(key.id()) == signing { "yes" } else { "" };
        table.row(vec![
            Cell::plain(key.id().to_string()).painted(Paint::bold),
            Cell::plain(signs),
            Cell::plain(key.to_string()),
        ]);
    }
    terminal.raw(table.render(terminal.out).as_bytes())
}

fn rotate(terminal: &Terminal, keys: &Keys, revoke: bool) -> Result<(), Failure> {
    let id = keys.rotate(revoke).map_err(refused)?;
    if terminal.json {
        return terminal.document(&json!({ "id": id.to_string(), "revoked": revoke }));
    }
    let others = if revoke {
        "tokens of the older keys open no connection any more; open connections stay until their tokens expire"
    } else {
        "tokens of the older keys hold until they expire"
    };
    terminal.say(format!("tokens are signed with {id} from now on; {others}"));
    Ok(())
}

fn refused(error: KeysError) -> Failure {
    let text = error.to_string();
    let (what, remedy) = parted(&text);
    let failure = match error {
        KeysError::Missing(_) | KeysError::Claims(_) | KeysError::Ring(_) => Failure::usage(what),
        _ => Failure::host(what),
    };
    match remedy {
        Some(remedy) => failure.remedy(remedy),
        None => failure,
    }
}
