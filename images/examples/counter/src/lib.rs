//! One count per process.

use denizen::prelude::*;

#[state]
#[derive(Default)]
struct Counter {
    count: u64,
}

#[derive(Deserialize)]
struct By {
    by: u64,
}

#[derive(Serialize)]
struct Count {
    count: u64,
}

/// Adds `by` to the count of this process, and answers with the sum.
#[function]
fn increment(cx: &mut Context, Json(a): Json<By>) -> Result<Json<Count>> {
    let mut c = cx.edit_or_default::<Counter>("counter")?;
    c.count = c.count.checked_add(a.by).ok_or_else(|| bad_input("count overflows"))?;
    println!("now {}", c.count);
    Ok(Json(Count { count: c.count }))
}

/// The count of this process. Runs beside anything else that the process does.
#[function]
fn value(cx: &Context) -> Result<Json<Count>> {
    let count = cx.get::<Counter>("counter")?.map_or(0, |c| c.count.to_native());
    Ok(Json(Count { count }))
}

denizen::export!(increment, value);

#[cfg(test)]
mod tests {
    use denizen::FailKind;
    use denizen::testing::process;

    #[test]
    fn it_counts() {
        let mut alice = process!();
        assert_eq!(alice.call("value", "").unwrap().text(), r#"{"count":0}"#);
        assert_eq!(alice.call("increment", r#"{"by":2}"#).unwrap().text(), r#"{"count":2}"#);
        assert_eq!(alice.call("increment", r#"{"by":40}"#).unwrap().text(), r#"{"count":42}"#);
        assert_eq!(alice.call("value", "").unwrap().text(), r#"{"count":42}"#);
    }

    #[test]
    fn an_overflow_is_the_callers_fault_and_changes_nothing() {
        let mut alice = process!();
        alice.call("increment", r#"{"by":2}"#).unwrap();
        let failure = alice.call("increment", r#"{"by":18446744073709551615}"#).unwrap_err();
        assert_eq!((failure.kind, &*failure.message), (FailKind::BadInput, "count overflows"));
        assert_eq!(alice.call("increment", r#"{"by":"two"}"#).unwrap_err().kind, FailKind::BadInput);
        assert_eq!(alice.call("value", "").unwrap().text(), r#"{"count":2}"#);
    }
}
