//! The picture of `tokenctl status` in the README. With `TOKEND_TESTS_WRITE_PICTURE=1`, the test makes it from a real status.

use std::env;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::process::Stdio;

use tokend_tests::daemon::Launch;
use tokend_tests::standin::{Kind, StandIn};
use tokend_tests::{Answer, RealDaemon, TestDir, process, program, wait};

/// The sizes of a character and of the margin, in pixels.
const WIDTH: usize = 8;
const HEIGHT: usize = 19;
const MARGIN: usize = 16;

/// The colours of the terminal, by their numbers in its language.
const COLOURS: [(&str, &str); 3] = [("31", "#ff7b72"), ("32", "#7ee787"), ("33", "#e3b341")];

/// The output of `tokenctl status` on a terminal, with the control sequences of its colours.
fn status(daemon: &RealDaemon) -> String {
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = daemon.tokenctl().command();
    command.arg("status").env("TERM", "xterm").env_remove("NO_COLOR");
    let mut child = command.stdin(Stdio::null()).stdout(pty.slave).spawn().unwrap();
    drop(command);
    let mut shown = Vec::new();
    // The end of the program is an error here.
    let _ = File::from(pty.master).read_to_end(&mut shown);
    assert_eq!(process::exit_code_within(&mut child, wait::PATIENCE), Some(0));
    String::from_utf8(shown).unwrap().replace("\r\n", "\n")
}

/// The number of characters without those that set a colour.
fn columns_of(line: &str) -> usize {
    let plain =
        COLOURS.iter().fold(line.to_owned(), |line, (code, _)| line.replace(&format!("\x1b[{code}m"), ""));
    plain.replace("\x1b[0m", "").chars().count()
}

/// A text of a terminal as a picture.
fn svg(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let columns = lines.iter().map(|line| columns_of(line)).max().unwrap_or_default();
    let (width, height) = (columns * WIDTH + 2 * MARGIN, lines.len() * HEIGHT + 2 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"ui-monospace, \
         SFMono-Regular, Menlo, Consolas, monospace\" font-size=\"13\" fill=\"#e6edf3\">\n<title>The output of tokenctl \
         status</title>\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>\n"
    );
    for (number, line) in lines.iter().enumerate() {
        let (y, length) = (MARGIN + (number + 1) * HEIGHT - 5, columns_of(line) * WIDTH);
        let _ = write!(svg, "<text x=\"{MARGIN}\" y=\"{y}\" textLength=\"{length}\" xml:space=\"preserve\">");
        let escaped = line.replace('&', "&amp;").replace('<', "&lt;").replace("\x1b[0m", "</tspan>");
        let coloured = COLOURS.iter().fold(escaped, |line, (code, colour)| {
            line.replace(&format!("\x1b[{code}m"), &format!("<tspan fill=\"{colour}\">"))
        });
        assert!(!coloured.contains('\x1b'), "an unknown colour: {coloured:?}");
        svg.extend([&coloured, "</text>\n"]);
    }
    svg + "</svg>\n"
}

/// The words of each line of a picture, without numbers and durations.
fn words(svg: &str) -> Vec<Vec<String>> {
    let texts = svg.lines().filter(|line| line.starts_with("<text"));
    let is_duration = |word: &str| {
        word == "now"
            || word
                .strip_suffix(['s', 'm', 'h', 'd'])
                .is_some_and(|n| n.bytes().all(|byte| byte.is_ascii_digit()))
    };
    texts
        .map(|line| {
            let text: String = line.split('<').filter_map(|part| Some(part.split_once('>')?.1)).collect();
            let words = text.split_whitespace().map(|word| word.trim_end_matches([',', ':']));
            let words = words.filter(|word| !is_duration(word));
            words.map(|word| word.chars().filter(|c| !c.is_ascii_digit()).collect()).collect()
        })
        .collect()
}

#[test]
fn the_picture_of_the_readme_shows_what_status_prints() {
    let home = TestDir::new();
    let kinds = [Kind::EconnectPsb, Kind::BnpParibasCib, Kind::AritmaPsd2, Kind::CubeConnect];
    let providers = kinds.map(StandIn::start);
    home.configure(
        "",
        &providers.iter().map(|provider| provider.configuration(&home, "")).collect::<String>(),
    );
    let [psb, .., cube] = &providers;
    cube.provider().always(Answer::refusal(401, "invalid_client"));
    let daemon = Launch::new(&home).start();
    for name in ["psb", "psb-user", "bnp", "aritma"] {
        daemon.tokenctl().get(name);
    }
    psb.set_down(true);
    assert_ne!(daemon.tokenctl().run(&["refresh", "psb"]).code, 0);
    wait::until("cube is refused", || {
        (daemon.tokenctl().status_of("cube")["state"] == "needs-operator").then_some(())
    });

    let picture = || svg(&format!("$ tokenctl status\n{}", status(&daemon)));
    let path = program::workspace().join("docs/status.svg");
    if env::var("TOKEND_TESTS_WRITE_PICTURE").is_ok_and(|value| value == "1") {
        fs::write(&path, picture()).unwrap();
    }
    let committed = words(&fs::read_to_string(path).unwrap());
    // For a moment, a token may be in another state.
    let is_same = wait::within(wait::PATIENCE, || (words(&picture()) == committed).then_some(()));
    assert!(
        is_same.is_some(),
        "make docs/status.svg again with TOKEND_TESTS_WRITE_PICTURE=1: {:?}",
        words(&picture())
    );
}
