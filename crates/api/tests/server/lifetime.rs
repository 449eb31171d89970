//! The beginning and the end of a server.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use kindling_api::Reply;
use kindling_api::server::{Limits, PATH_MAX_LEN, Server, ServerError};

use crate::support::{Api, Connection, GET, PATIENCE, Stopped, eventually, is_readable, wait_for_request};

fn bind(path: &Path) -> Result<Server, ServerError> {
    Server::bind(path, Limits::default())
}

#[test]
fn a_path_that_exists_is_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "text").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/nowhere", &link).unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for path in [&file, &link, &socket, &folder.path().to_owned()] {
        let error = bind(path).unwrap_err();
        assert!(matches!(error, ServerError::Exists { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            format!("cannot listen on {}: the path exists already", path.display())
        );
        assert!(path.symlink_metadata().is_ok());
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
}

#[test]
fn a_path_that_cannot_be_a_sockets_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let fill = |len: usize| folder.path().join("x".repeat(len - folder.path().as_os_str().len() - 1));
    let longest = fill(PATH_MAX_LEN);
    assert_eq!(longest.as_os_str().as_bytes().len(), PATH_MAX_LEN);
    drop(bind(&longest).unwrap());
    for path in [fill(PATH_MAX_LEN + 1).as_path(), Path::new("")] {
        let error = bind(path).unwrap_err();
        let expected =
            format!("cannot listen on {}: a socket's path must have 1 to 107 bytes", path.display());
        assert_eq!(error.to_string(), expected);
    }
    let missing = folder.path().join("missing/socket");
    let error = bind(&missing).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {}", missing.display()));
    let ServerError::Listen { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), io::ErrorKind::NotFound);
    assert!(bind(&folder.path().join("a\0b")).is_err());
}

#[test]
fn the_socket_is_removed_with_whatever_serves_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = bind(&path).unwrap();
    assert!(path.exists());
    drop(server);
    assert!(!path.exists());

    let (requests, events) = bind(&path).unwrap().start(|| Ok(())).unwrap();
    assert!(path.exists());
    drop(events);
    assert!(path.exists());
    drop(requests);
    assert!(!path.exists());

    // One that is another's by then stays.
    let (requests, _events) = bind(&path).unwrap().start(|| Ok(())).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(requests);
    assert!(path.exists());
}

#[test]
fn the_thread_is_called_api_and_is_set_up_before_it_does_anything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = bind(&path).unwrap();
    // Clients may come before there is anybody to serve them.
    let mut early = Connection::new(&path);
    early.send(GET);
    let (mut requests, _events) = server
        .start(move || {
            assert_eq!(std::thread::current().name(), Some("api"));
            assert!(!is_readable(early.stream.as_raw_fd(), Duration::from_millis(50)));
            std::mem::forget(early);
            Ok(())
        })
        .unwrap();
    assert!(wait_for_request(&mut requests, PATIENCE).is_some());
}

#[test]
fn a_thread_that_cannot_be_set_up_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let error = bind(&path).unwrap().start(|| Err(io::Error::other("no"))).unwrap_err();
    assert_eq!(error.to_string(), "cannot set up the API's thread");
    assert!(!path.exists());
    drop(bind(&path).unwrap().start(|| Ok(())).unwrap());
}

#[test]
fn requests_wait_in_order_and_their_descriptor_says_whether_there_are_any() {
    let api = Api::counting();
    let Stopped { requests, path, .. } = &mut api.stop();
    let mut clients: Vec<_> = (0..3).map(|_| Connection::new(&*path)).collect();
    assert!(!is_readable(requests.as_raw_fd(), Duration::from_millis(20)));
    assert!(requests.take().is_none());
    for (at, client) in clients.iter_mut().enumerate() {
        client.send(GET);
        eventually("it has come", || requests.metrics().requests.get() == at as u64 + 1);
    }
    for number in 0..3 {
        let request = wait_for_request(requests, PATIENCE).unwrap();
        request.answer(Ok(Reply::Json(number.to_string())));
    }
    assert!(!is_readable(requests.as_raw_fd(), Duration::ZERO));
    assert!(requests.take().is_none());
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.answer().body, number.to_string());
    }
}

#[test]
fn an_answer_just_before_the_end_arrives_and_those_who_wait_are_told() {
    for _ in 0..20 {
        let api = Api::counting();
        let mut idle = api.connect();
        assert_eq!(idle.ask(GET).body, "1");
        let mut stopped = api.stop();
        let mut clients: Vec<_> = (0..3).map(|_| Connection::new(&stopped.path)).collect();
        let mut taken = Vec::new();
        for client in &mut clients {
            client.send(GET);
            taken.push(wait_for_request(&mut stopped.requests, PATIENCE).unwrap());
        }
        // One is answered, one is dropped, and one is held for longer than there is a server.
        taken.remove(0).answer(Ok(Reply::Json("7".repeat(100_000))));
        drop(taken.remove(0));
        let mut waiting = Connection::new(&stopped.path);
        waiting.send(GET);
        assert!(is_readable(stopped.requests.as_raw_fd(), PATIENCE));
        drop(stopped.requests);
        assert_eq!(clients[0].answer().body, "7".repeat(100_000));
        clients[1].answer().assert_fault(503);
        waiting.answer().assert_fault(503);
        taken.remove(0).answer(Ok(Reply::Empty));
        for client in clients.iter_mut().chain([&mut waiting, &mut idle]) {
            client.assert_closed();
        }
    }
}
