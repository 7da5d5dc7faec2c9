//! Two state types of one name: the host could not say which of them changed, so the plugin does not start.

#![allow(clippy::unwrap_used, reason = "a test ends where it is surprised")]

use denizen::prelude::*;
use denizen::testing::Process;

#[state]
struct Place {
    row: u32,
}

mod other {
    use denizen::prelude::*;

    #[state]
    pub(super) struct Place {
        pub(super) column: u32,
    }

    #[state(name = "Renamed")]
    pub(super) struct Spot {
        pub(super) column: u32,
    }
}

#[function]
fn keep(cx: &mut Context) -> Result<()> {
    cx.put("place", &Place { row: 1 })?;
    cx.put("other", &other::Place { column: 2 })?;
    cx.put("spot", &other::Spot { column: 3 })
}

denizen::export!(keep);

unsafe extern "C" {
    fn denizen_plugin_init(
        host: *const denizen::__private::DzHost,
        init: *const denizen::__private::DzInit,
    ) -> i32;
}

#[test]
fn namesakes_are_refused_at_the_start() {
    // SAFETY: `export!` makes it, and it is never unloaded.
    let refused = unsafe { Process::start(denizen_plugin_init) }.unwrap_err();
    assert!(refused.starts_with("two state types are called `Place`: `struct Place { "), "{refused}");
    assert!(refused.contains("row: u32") && refused.contains("column: u32"), "{refused}");
    assert!(!refused.contains("Renamed"), "{refused}");
}
