use super::*;

#[test]
fn a_url_is_split_into_its_parts() {
    for (text, given, root, server) in [
        ("http://h:8080", "http://h:8080", "http://h:8080", "h:8080"),
        ("http://h:8080/", "http://h:8080", "http://h:8080", "h:8080"),
        ("http://h/v1/", "http://h/v1", "http://h", "h:80"),
        (
            "HTTP://Host/llm/v1",
            "http://host/llm/v1",
            "http://host/llm",
            "host:80",
        ),
        (
            "http://[::1]:9/v1",
            "http://[::1]:9/v1",
            "http://[::1]:9",
            "[::1]:9",
        ),
        (
            "http://m/engines/llama.cpp/v1",
            "http://m/engines/llama.cpp/v1",
            "http://m/engines/llama.cpp",
            "m:80",
        ),
    ] {
        let url: BaseUrl = text.parse().unwrap();
        assert_eq!(url.as_given(), given, "{text}");
        assert_eq!(url.root(), root, "{text}");
        assert_eq!(url.server(), server, "{text}");
    }
}

#[test]
fn the_root_of_a_model_runner_is_the_url_before_engines() {
    for (text, root) in [
        ("http://m/engines/llama.cpp/v1", "http://m"),
        ("http://m/engines/v1/", "http://m"),
        ("http://h/llm/engines/v1", "http://h/llm"),
        ("http://localhost:12434", "http://localhost:12434"),
        ("http://localhost:12434/v1", "http://localhost:12434"),
    ] {
        assert_eq!(
            text.parse::<BaseUrl>().unwrap().before_engines(),
            root,
            "{text}"
        );
    }
}

#[test]
fn a_unix_socket_may_be_followed_by_a_path() {
    for (text, given, server, root, requests) in [
        (
            "unix:/run/x.sock",
            "unix:/run/x.sock",
            "unix:/run/x.sock",
            "http://localhost",
            "http://localhost",
        ),
        (
            "unix:///run/a b:c.sock:/llm/v1/",
            "unix:/run/a b:c.sock:/llm/v1",
            "unix:/run/a b:c.sock",
            "http://localhost/llm",
            "http://localhost/llm/v1",
        ),
    ] {
        let url: BaseUrl = text.parse().unwrap();
        assert_eq!(url.to_string(), given, "{text}");
        assert_eq!(url.server(), server, "{text}");
        assert_eq!(url.root(), root, "{text}");
        assert_eq!(url.for_requests(), requests, "{text}");
        assert_eq!(given.parse::<BaseUrl>().unwrap(), url, "{text}");
        assert!(url.is_loopback() && !url.is_https());
    }
    for text in [
        "unix:",
        "unix:x.sock",
        "unix://h/x.sock",
        "unix:/run/",
        "unix:/x.sock:/a?b",
        "unix:/x\n.sock",
    ] {
        assert!(text.parse::<BaseUrl>().is_err(), "{text:?}");
    }
    let long = format!("unix:/{}", "x".repeat(108));
    assert!(long.parse::<BaseUrl>().unwrap_err().contains("too long"));
}

#[test]
fn different_spellings_of_a_url_name_the_same_server() {
    let url = |text: &str| text.parse::<BaseUrl>().unwrap();
    for (a, b, same) in [
        ("http://h", "HTTP://me:pw@H:80/v1/", true),
        ("http://h/a/v1", "http://h:80/a/", true),
        ("http://h", "http://h:8080", false),
        ("http://h/a", "http://h/A", false),
    ] {
        assert_eq!(url(a).is_same_server(&url(b)), same, "{a} {b}");
    }
    #[cfg(feature = "tls")]
    {
        assert!(url("https://h").is_same_server(&url("https://h:443")));
        assert!(!url("https://h:80").is_same_server(&url("http://h")));
    }
}

#[test]
fn loopback_hosts_are_recognized() {
    for (text, here) in [
        ("http://localhost:1", true),
        ("http://127.0.0.2", true),
        ("http://[::1]", true),
        ("http://a.localhost.:1", true),
        ("http://h", false),
        ("http://localhost.example", false),
    ] {
        assert_eq!(
            text.parse::<BaseUrl>().unwrap().is_loopback(),
            here,
            "{text}"
        );
    }
}

#[test]
fn userinfo_is_kept_and_not_printed() {
    let url: BaseUrl = "http://me:p%40ss@h:1/v1".parse().unwrap();
    assert_eq!(url.userinfo(), Some("me:p@ss"));
    assert_eq!(
        format!("{url} {url:?}"),
        "http://h:1/v1 BaseUrl(http://h:1/v1)"
    );
    for (text, printed) in [
        ("ftp://me:pw@h", "ftp://h"),
        ("http://me:p#w@h:1/v1", "http://h:1/v1"),
        ("http://me:p@w,x@h:1", "http://h:1"),
        ("me:p//w@h:1", "h:1"),
        ("me:p://w@h:1", "h:1"),
        ("me:pw@h:1", "h:1"),
        ("http://h/?key=pw", "http://h/"),
        ("http://h/#pw", "http://h/"),
        ("http://h:1", "http://h:1"),
    ] {
        assert_eq!(BaseUrl::without_secrets(text), printed, "{text}");
    }
}

#[test]
fn a_url_is_split_at_the_first_equals_sign_outside_of_its_password() {
    for (text, url, rest) in [
        ("http://h:1/v1=/run/a=b", Some("http://h:1/v1"), "/run/a=b"),
        ("http://me:p=w==@h:1=f@g", Some("http://h:1"), "f@g"),
        ("/run/a=http://h", None, "/run/a=http://h"),
        ("file", None, "file"),
        ("unix:/s.sock:/a=/run/f", Some("unix:/s.sock:/a"), "/run/f"),
    ] {
        let (base, found) = split(text).unwrap();
        assert_eq!(base.map(|base| base.as_given()).as_deref(), url, "{text}");
        assert_eq!(found, rest, "{text}");
    }
    for text in ["http://h/?a=b=f", "unix://s=f", "unix:s=f", "http://h:0=f"] {
        assert!(split(text).is_err(), "{text}");
    }
}

#[test]
fn invalid_urls_are_rejected() {
    for text in [
        "",
        "h:8080",
        "ftp://h",
        "http://",
        "http:///v1",
        "http://h:0",
        "http://h:99999",
        "http://h:x",
        "http://h/?q=1",
        "http://h/#f",
        "http://h h",
        "http://[::1",
        "http://[zz]",
        "http://a b@h",
        "http://h\n",
        "http://%zz@h",
        "http://me:80/w@h",
        "http://me:p/w@h",
    ] {
        assert!(text.parse::<BaseUrl>().is_err(), "{text:?}");
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn https_needs_the_feature() {
    assert!("https://h".parse::<BaseUrl>().unwrap_err().contains("tls"));
}
