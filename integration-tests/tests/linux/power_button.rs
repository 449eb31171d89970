//! The power button as a stock kernel sees it: an input device with one key.

use kindling_integration_tests::harness::{Guest, Stdio};

use super::{output, power_off, ready};

/// What `/dev/input/eventN` gives of an event (`struct input_event`), in words of 16 bits: time (8), type, code, value (2).
const EVENT_WORDS: usize = 12;

const EV_SYN: u16 = 0;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// The device file with the button's events.
fn device_file(guest: &mut Guest) -> String {
    let devices = output(guest, "cat /proc/bus/input/devices");
    let buttons: Vec<_> = devices.split("\n\n").filter(|device| device.contains("Power Button")).collect();
    let [button] = buttons[..] else { panic!("{devices}") };
    assert!(button.contains("Phys=PNP0C0C/button/input0"), "a control-method button: {button}");
    let event = button.split([' ', '=']).find(|word| word.starts_with("event")).unwrap();
    format!("/dev/input/{event}")
}

#[test]
fn each_press_of_the_power_button_is_one_stroke_of_its_key() {
    let mut guest = ready(Guest::builder().stdio(Stdio::Pty).modules(&["button", "evdev"]));
    let file = device_file(&mut guest);
    // Opened before the command ends: whatever comes from then on is kept.
    output(&mut guest, &format!("exec 3<{file}; cat <&3 >/tmp/events 2>/dev/null &"));
    let stroke = [(EV_KEY, KEY_POWER, 1), (EV_SYN, 0, 0), (EV_KEY, KEY_POWER, 0), (EV_SYN, 0, 0)];
    for presses in 1..=3 {
        guest.send(b"\x01p").unwrap();
        let bytes = presses * stroke.len() * EVENT_WORDS * 2;
        output(&mut guest, &format!("until [ $(stat -c %s /tmp/events) -ge {bytes} ]; do sleep 0.1; done"));
        let words = output(&mut guest, "od -An -v -t u2 /tmp/events");
        let words: Vec<u16> = words.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let events: Vec<_> = words.chunks(EVENT_WORDS).map(|event| (event[8], event[9], event[10])).collect();
        assert_eq!(events, stroke.repeat(presses));
    }
    power_off(&mut guest);
}
