//! The control interface: what is there, and changes to it. Calls are elsewhere.

use std::rc::Rc;

use denizen_image::ImageId;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::body::FrontBody;
use super::routes::Route;
use super::{Answer, check_token, deploy, json_answer, logs, processes, state};
use crate::home::Home;
use crate::images::{self, store_problem};
use crate::problem::{Kind, Problem};
use crate::process::{Ask, refused_claim};

/// Answers everything that is no call.
pub(super) async fn control(
    home: &Rc<Home>,
    route: Route<'_>,
    query: Option<&str>,
    request: Request<Incoming>,
) -> Result<Answer, Problem> {
    let (head, body) = request.into_parts();
    let headers = &head.headers;
    if needs_token(&route, &head.method) {
        check_token(home, headers)?;
    }
    let ok = |document: Value| Ok(json_answer(StatusCode::OK, &document));
    match (&route, &head.method) {
        (Route::Node, _) => ok(node(home)),
        (Route::Apps, _) => ok(apps(home).await?),
        (Route::Images, _) => ok(images(home).await?),
        (Route::Image(image), _) => remove_image(home, *image).await,
        (Route::PruneImages, _) => ok(prune_images(home).await?),
        (Route::AppImage(app), &Method::PUT) => {
            deploy::deploy(home, app, replaces_layout(headers)?, body).await
        }
        (Route::AppImage(app), _) => ok(image(home, app)?),
        (Route::Processes, _) => ok(processes::list(home, None).await?),
        (Route::AppProcesses(app), _) => ok(processes::list(home, Some(app)).await?),
        (Route::Process(app, process), &Method::POST) => processes::create(home, app, process).await,
        (Route::Process(app, process), &Method::DELETE) => processes::delete(home, app, process).await,
        (Route::Process(app, process), _) => ok(processes::one(home, app, process).await?),
        (Route::SwapOut(app, process), _) => ok(processes::swap_out(home, app, process).await?),
        (Route::SwapIn(app, process), _) => ok(processes::swap_in(home, app, process).await?),
        (Route::State(object), _) => {
            state::state(home, object.clone(), state::list(query)?, headers, body).await
        }
        (Route::Key(object, key), method) => {
            let ask = match *method {
                Method::PUT => state::put(key.clone(), headers)?,
                Method::DELETE => Ask::Delete(key.clone()),
                _ => Ask::Get(key.clone()),
            };
            state::state(home, object.clone(), ask, headers, body).await
        }
        (Route::Export(object), _) => state::state(home, object.clone(), Ask::Export, headers, body).await,
        (Route::Import(object), _) => state::state(home, object.clone(), Ask::Import, headers, body).await,
        (Route::Files(object), _) => state::state(home, object.clone(), Ask::Files, headers, body).await,
        (Route::File(object, path), _) => {
            state::state(home, object.clone(), Ask::File(path.clone()), headers, body).await
        }
        (Route::FilesArchive(object), _) => {
            state::state(home, object.clone(), Ask::FilesArchive, headers, body).await
        }
        (Route::Commit(object, commit), _) => {
            state::commit(home, object.clone(), *commit, query, headers).await
        }
        (Route::Logs, _) => logs::read(home, query),
        (Route::Shutdown, _) => {
            home.node.shutdown.ask();
            let mut answer = Response::new(FrontBody::empty());
            *answer.status_mut() = StatusCode::ACCEPTED;
            Ok(answer)
        }
        // Calls do not come here.
        (Route::Call { .. }, _) => Err(Problem::new(Kind::UnknownPath, "this is a call")),
    }
}

/// Everything that changes something, and what functions have stored or printed.
fn needs_token(route: &Route<'_>, method: &Method) -> bool {
    let shows = matches!(
        route,
        Route::Logs
            | Route::State(_)
            | Route::Key(..)
            | Route::Export(_)
            | Route::Files(_)
            | Route::File(..)
            | Route::FilesArchive(_)
    );
    shows || method != Method::GET
}

fn replaces_layout(headers: &HeaderMap) -> Result<bool, Problem> {
    match headers.get("denizen-layout").map(HeaderValue::as_bytes) {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case(b"replace") => Ok(true),
        Some(_) => Err(Problem::new(Kind::BadHeader, "Denizen-Layout can only be `replace`")),
    }
}

fn node(home: &Home) -> Value {
    let node = &home.node;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "abi_version": denizen_abi::ABI_VERSION,
        "dir": node.dir.root(),
        "pid": std::process::id(),
        "executors": node.executors(),
        "active": node.seats.taken(),
        "max_active": node.seats.most(),
        "isolation": node.pool.report(),
        "uptime_ms": u64::try_from(node.started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

async fn apps(home: &Home) -> Result<Value, Problem> {
    let apps = home.node.scheduler.apps().await.map_err(|error| refused_claim(&error))?;
    let apps: Vec<_> = apps
        .into_iter()
        .map(|app| json!({"app": app.app, "image": app.image, "processes": app.processes}))
        .collect();
    Ok(json!({ "apps": apps }))
}

fn image(home: &Home, app: &str) -> Result<Value, Problem> {
    let image = home.app(app)?.image();
    Ok(json!({
        "app": app,
        "image": image.id,
        "functions": image.functions_json(),
        "types": image.types_json(),
        "manifest": image.manifest_json,
    }))
}

async fn images(home: &Home) -> Result<Value, Problem> {
    let uses = home.node.scheduler.images().await.map_err(|error| refused_claim(&error))?;
    let store = home.node.images.clone();
    let listed = home.node.importing.run(move || store.list()).await;
    let listed = listed.map_err(|error| Problem::new(Kind::ShuttingDown, error.to_string()))?;
    let listed = listed.map_err(|error| store_problem(&error))?;
    let images: Vec<_> = listed
        .into_iter()
        .map(|image| {
            let used = uses.iter().find(|one| one.image == image.id);
            json!({
                "image": image.id,
                "name": image.manifest.name,
                "bytes": image.bytes,
                "apps": used.map(|used| used.apps.as_slice()).unwrap_or_default(),
                "previous_of": used.map(|used| used.previous_of.as_slice()).unwrap_or_default(),
                "processes": used.map_or(0, |used| used.processes),
            })
        })
        .collect();
    Ok(json!({ "images": images }))
}

async fn remove_image(home: &Home, image: ImageId) -> Result<Answer, Problem> {
    images::remove(&home.node, image).await?;
    let mut answer = Response::new(FrontBody::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    Ok(answer)
}

async fn prune_images(home: &Home) -> Result<Value, Problem> {
    let removed = images::prune(&home.node, None).await?;
    let removed: Vec<_> =
        removed.into_iter().map(|one| json!({"image": one.image, "bytes": one.bytes})).collect();
    Ok(json!({ "removed": removed }))
}
