//! Serves the API with a machine that is none: it remembers its configuration and its phase. What a monitor has to bring
//! for an API like this is in `impl Machine`; the loop at the end is what it does anyway.
//!
//! ```text
//! cargo run -p kindling-api --features server --example fake_machine /tmp/fake.sock
//! curl --unix-socket /tmp/fake.sock http://localhost/vm/config
//! ```

use std::error::Error;
use std::os::fd::AsRawFd;

use kindling_api::server::{Limits, Request, Server};
use kindling_api::{Action, Fault, Machine, Phase, Reply, VmConfig, dispatch};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

struct FakeMachine {
    phase: Phase,
    config: VmConfig,
}

impl Machine for FakeMachine {
    fn phase(&self) -> Phase {
        self.phase
    }

    fn act(&mut self, action: Action) -> Result<Reply, Fault> {
        match action {
            Action::GetVmConfig => return Ok(Reply::json(&self.config)),
            Action::GetMachineConfig => return Ok(Reply::json(&self.config.machine_config)),
            Action::GetEvents => return Ok(Reply::Events),
            Action::Configure(section) => self.config = self.config.with(section)?,
            Action::Start => {
                self.config.boot_source()?;
                self.phase = Phase::Running;
            }
            Action::Pause => self.phase = Phase::Paused,
            Action::Resume => self.phase = Phase::Running,
            other => return Err(Fault::bad_request(format!("this machine knows no {}", other.name()))),
        }
        Ok(Reply::Empty)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: fake_machine SOCKET")?;
    let (mut requests, events) = Server::bind(path.as_ref(), Limits::default())?.start(|| Ok(()))?;
    let mut machine = FakeMachine { phase: Phase::NotStarted, config: VmConfig::default() };

    let epoll = Epoll::new()?;
    epoll.ctl(ControlOperation::Add, requests.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
    loop {
        epoll.wait(-1, &mut [EpollEvent::default()])?;
        while let Some(Request { action, responder }) = requests.take() {
            let before = machine.phase;
            responder.answer(dispatch(&mut machine, action));
            if machine.phase != before {
                events.send(format!("{{\"event\":\"state\",\"state\":\"{:?}\"}}", machine.phase));
            }
        }
    }
}
