//! `openapi.yaml` says what is served: its paths and methods are the routing table's, its examples are accepted, and the members
//! of its objects are those of the types that are read.
//!
//! It is read line by line, as it is written: two spaces a level, examples and references in one line.

use std::collections::{BTreeMap, BTreeSet};

use kindling_api::{ROUTES, Status, route};

const FILE: &str = include_str!("../openapi.yaml");

/// What the file says of a method of a path.
#[derive(Debug, Default)]
struct Operation {
    /// The name of the body's schema; empty where it may be any JSON.
    schema: Option<String>,
    /// The example of a body.
    example: Option<String>,
    statuses: BTreeSet<u16>,
}

/// A line's level, and the text in it; without those that are blank.
fn lines() -> impl Iterator<Item = (usize, &'static str)> {
    FILE.lines().filter(|line| !line.trim().is_empty()).map(|line| {
        let text = line.trim_start();
        ((line.len() - text.len()) / 2, text)
    })
}

/// The lines below the section of that name, which is at the top level.
fn section(name: &'static str) -> impl Iterator<Item = (usize, &'static str)> {
    lines().skip_while(move |line| *line != (0, name)).skip(1).take_while(|(level, _)| *level > 0)
}

/// By path and method, as the routing table has them.
fn operations() -> BTreeMap<(String, String), Operation> {
    let mut operations = BTreeMap::<_, Operation>::new();
    let (mut path, mut method, mut part) = ("", String::new(), "");
    for (level, text) in section("paths:") {
        let name = text.trim_end_matches(':');
        match level {
            1 => path = name,
            2 => method = name.to_uppercase(),
            3 => part = name,
            _ => {}
        }
        if level < 3 || method == "PARAMETERS" {
            continue;
        }
        let operation = operations.entry((path.to_owned(), method.clone())).or_default();
        match part {
            "requestBody" => {
                if let Some(schema) = text.strip_prefix("schema: ") {
                    operation.schema = Some(reference(schema).unwrap_or_default().to_owned());
                }
                operation.example =
                    operation.example.take().or(text.strip_prefix("example: ").map(str::to_owned));
            }
            "responses" if level == 4 => {
                operation
                    .statuses
                    .extend(text.split('"').nth(1).and_then(|status| status.parse::<u16>().ok()));
            }
            _ => {}
        }
    }
    operations
}

/// The name of a schema that is referred to.
fn reference(text: &str) -> Option<&str> {
    text.split_once("#/components/schemas/")?.1.split('"').next()
}

/// The members of each schema.
fn schemas() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut schemas = BTreeMap::<_, BTreeSet<_>>::new();
    let (mut schema, mut in_properties) = ("", false);
    for (level, text) in section("components:").skip_while(|line| *line != (1, "schemas:")).skip(1) {
        let name = text.trim_end_matches(':');
        match level {
            2 => schema = name,
            3 => in_properties = name == "properties",
            4 if in_properties => {
                schemas.entry(schema).or_default().insert(name);
            }
            _ => {}
        }
    }
    schemas
}

/// The path with something in the place of its parameter: what the example of a body says, if it does.
fn filled_in(path: &str, example: &str) -> String {
    let Some((before, parameter)) = path.split_once('{') else { return path.to_owned() };
    let body: serde_json::Value = serde_json::from_str(example).unwrap_or_default();
    let id = body.get(parameter.trim_end_matches('}')).and_then(|id| id.as_str()).unwrap_or("x");
    format!("{before}{id}")
}

#[test]
fn the_file_has_the_paths_and_methods_that_are_served_and_no_others() {
    let served: BTreeSet<_> =
        ROUTES.iter().map(|route| (route.path.to_owned(), route.method.to_owned())).collect();
    let described: BTreeSet<_> = operations().into_keys().collect();
    assert_eq!(described, served);
}

#[test]
fn every_example_is_accepted() {
    for ((path, method), operation) in operations() {
        let example = operation.example.unwrap_or_default();
        assert_eq!(example.is_empty(), operation.schema.is_none(), "{method} {path} lacks an example");
        let result = route(&method, &filled_in(&path, &example), example.as_bytes());
        assert!(result.is_ok(), "{method} {path}: {result:?}");
    }
}

#[test]
fn objects_have_the_members_that_are_read() {
    let schemas = schemas();
    let is_served = |schema: &str, method: &str, path: &str, before: &str, after: &str| {
        let body = format!(r#"{before}{{"no such member": 0}}{after}"#);
        let fault = route(method, path, body.as_bytes()).unwrap_err();
        let (_, names) = fault.message.split_once("unknown field `no such member`, expected ").unwrap();
        let read: BTreeSet<_> = names.split('`').skip(1).step_by(2).collect();
        assert_eq!(schemas[schema], read, "{schema}");
    };
    for ((path, method), operation) in operations() {
        if let Some(schema) = operation.schema.filter(|schema| !schema.is_empty()) {
            is_served(&schema, &method, &filled_in(&path, ""), "", "");
        }
    }
    is_served("RateLimiter", "PUT", "/entropy", r#"{"rate_limiter": "#, "}");
    is_served("TokenBucket", "PUT", "/serial", r#"{"rate_limiter": "#, "}");
}

#[test]
fn statuses_are_those_of_the_method() {
    for ((path, method), Operation { schema, statuses, .. }) in operations() {
        let mut expected = BTreeSet::from([400, 431, 503]);
        expected.insert(if method == "GET" { 200 } else { 204 });
        if method != "GET" {
            expected.insert(Status::PayloadTooLarge.code());
        }
        if path.contains('{') {
            expected.insert(Status::NotFound.code());
        }
        assert_eq!(statuses, expected, "{method} {path} {schema:?}");
    }
}
