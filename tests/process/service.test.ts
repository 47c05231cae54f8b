import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { expect, test } from 'vitest';
import { ThrowAwayMachine } from '../../scripts/lib/throw-away-machine.ts';
import { eventually } from '../helpers/fleet.ts';
import { bootGpuBox, textOf, unitValue } from '../../scripts/lib/gpu-box.ts';

const PATIENCE = 240_000;
const LOOK = 60_000;
const INSTALLER = resolve('scripts/install-agent.sh');

const cannot = await ThrowAwayMachine.whyNot();
if (cannot !== undefined) process.stdout.write(`service tests: skipped, a throw-away machine: ${cannot}\n`);

test.skipIf(cannot !== undefined)(
  'installed on a machine with systemd: runs, is watched, reloads, is upgraded, stops and leaves',
  { timeout: PATIENCE },
  async () => {
    await using machine = await bootGpuBox({ name: 'svc' });
    const install = async (...args: string[]) => {
      const done = await machine.run(['sh', INSTALLER, '--yes', ...args]);
      expect(done.exitCode, `${done.stdout}\n${done.stderr}`).toBe(0);
      return done.stdout;
    };

    // --dry-run says all of it and does none of it.
    expect(await install('--dry-run')).toContain('+ write /etc/systemd/system/gantry-agent.service');
    expect(existsSync(machine.path('/etc/gantry'))).toBe(false);
    expect((await machine.run(['id', 'gantry'])).exitCode).not.toBe(0);

    const first = await install();
    expect(first).toMatch(/gantry add 'gantry:\/\/127\.0\.0\.1:7801\?/);
    expect(await unitValue(machine, 'ActiveState')).toBe('active');
    expect(await unitValue(machine, 'UnitFileState')).toBe('enabled');
    const config = await textOf(machine, '/etc/gantry/agent.yaml');
    expect(config).toContain('command:\n      - /usr/local/bin/vllm');
    expect((await machine.sh('id -nG gantry')).stdout.split(' ')).toEqual(
      expect.arrayContaining(['gantry', 'video', 'render']),
    );
    const modes = 'stat -c "%a %U:%G %n" /etc/gantry/agent.yaml /var/lib/gantry /run/gantry/agent.sock';
    expect((await machine.sh(modes)).stdout.split('\n')).toEqual([
      '640 root:gantry /etc/gantry/agent.yaml',
      '700 gantry:gantry /var/lib/gantry',
      '660 gantry:gantry /run/gantry/agent.sock',
    ]);

    // Its words for `systemctl status`, its own control group, and the flags of its first line.
    const status = await eventually(
      'the GPU is in the status',
      async () => {
        const text = await unitValue(machine, 'StatusText');
        return text.startsWith('1 GPU') ? text : undefined;
      },
      LOOK,
    );
    expect(status).toContain('no model loaded');
    const firstPid = await unitValue(machine, 'MainPID');
    expect(await textOf(machine, `/proc/${firstPid}/cgroup`)).toMatch(
      /0::.*\/system\.slice\/gantry-agent\.service\/agent\n/,
    );
    expect(await textOf(machine, `/proc/${firstPid}/cmdline`)).toContain('--optimize-for-size');
    expect(await textOf(machine, `/proc/${firstPid}/environ`)).toContain('NOTIFY_SOCKET');
    const children = (await textOf(machine, `/proc/${firstPid}/task/${firstPid}/children`)).trim().split(' ');
    for (const child of children)
      expect(await textOf(machine, `/proc/${child}/environ`)).not.toContain('NOTIFY_SOCKET');

    // Each server in a group of its own beside the agent's, and none outlives the unit.
    const alias = /^ {2}([\w.-]+):$/m.exec(config)?.[1] ?? '';
    const groups = async () => (await machine.sh('ls -d /sys/fs/cgroup/system.slice/gantry-agent.service/*/')).stdout;
    const load = await machine.run(['gantry-agent', 'load', alias]);
    expect(load.exitCode, load.stderr).toBe(0);
    expect(await groups()).toMatch(new RegExp(`/agent/\\n.*/gantry-[0-9a-f]{8}-${alias.replaceAll('.', '\\.')}-\\d+/`));
    await machine.sh('systemctl stop gantry-agent');
    expect((await machine.sh('ps -eo args | grep -c "[o]pt/sim/vllm"')).stdout).toBe('0');
    expect(await unitValue(machine, 'Result')).toBe('success');
    await machine.sh('systemctl start gantry-agent');
    const pid = await unitValue(machine, 'MainPID');

    // A member of the group may speak to it, and nobody else.
    await machine.sh('useradd --no-create-home anna && useradd --no-create-home --groups gantry ben');
    const asUser = (user: string) =>
      machine.run(['setpriv', '--reuid', user, '--init-groups', '--regid', user, 'gantry-agent', 'status', '--json']);
    expect((await asUser('ben')).exitCode).toBe(0);
    expect((await asUser('anna')).exitCode).not.toBe(0);

    // The doctor sees it from outside, mends what is safe, and says of a node in a home directory what the service does.
    const report = async (...args: string[]) => {
      const { stdout, stderr } = await machine.run(['gantry-agent', 'doctor', '--json', ...args]);
      expect(stdout, stderr).toContain('"checks"');
      const { checks } = JSON.parse(stdout) as { checks: { id: string; status: string; detail: string }[] }; // of shared/doctor.ts
      return (id: string) =>
        checks.filter((check) => check.id === id).map(({ status, detail }) => `${status}: ${detail}`);
    };
    const seen = await report();
    expect(seen('config')).toEqual([expect.stringMatching(/^warning: models\..*no revision/)]);
    expect(seen('driver')).toEqual([expect.stringMatching(/^ok: .*1 GPU/)]);
    expect(seen('engine')).toEqual([expect.stringMatching(/^ok: .*\/usr\/local\/bin\/vllm/)]);
    expect(seen('view')).toEqual(['ok: the service sees all that agent.yaml names']);
    expect(seen('cache-directory')).toEqual([expect.stringMatching(/^(ok|warning): \/var\/cache\/gantry: .* free/)]);
    expect(seen('port')).toEqual(['ok: 7801']);
    expect(seen('service')).toEqual(['ok: active, and starts with the machine']);
    expect(seen('agent')).toEqual([expect.stringMatching(/^ok: release /)]);
    expect(seen('left-over')).toEqual(['ok: no server without an agent']);
    await machine.sh('gantry-agent tokens add first > /dev/null && chmod 644 /var/lib/gantry/tokens.json');
    await machine.sh('systemctl disable gantry-agent');
    expect((await report())('tokens')[0]).toMatch(/^problem: .*mode 644/);
    const mended = await report('--fix');
    expect([mended('tokens'), mended('service')]).toEqual([
      ['ok: 1 token'],
      ['ok: active, and starts with the machine'],
    ]);
    await machine.sh('cp /usr/bin/node /root/node');
    expect(await install('--dry-run', '--node', '/root/node')).toContain('not used: /root/node');

    // A wrong configuration is refused by the reload, in its words; the agent goes on.
    await writeFile(machine.path('/etc/gantry/agent.yaml'), `${config}modles: {}\n`);
    const reload = await machine.run(['systemctl', 'reload', 'gantry-agent']);
    expect(reload.exitCode).not.toBe(0);
    const journal = await eventually(
      'its words are in the journal',
      async () => {
        const { stdout } = await machine.run(['journalctl', '--no-pager', '-u', 'gantry-agent']);
        return stdout.includes('modles: unknown key') ? stdout : undefined;
      },
      LOOK,
    );
    expect(journal).toContain('Did you mean models?');
    await writeFile(machine.path('/etc/gantry/agent.yaml'), config);
    expect((await machine.run(['systemctl', 'reload', 'gantry-agent'])).exitCode).toBe(0);
    expect(await unitValue(machine, 'MainPID')).toBe(pid);

    // Again: nothing changes, and nothing is restarted. What the owner wrote stays.
    await writeFile(machine.path('/etc/gantry/agent.yaml'), `# mine\n${config}`);
    expect(await install('--listen', 'network')).toMatch(/kept as it is[^]*It runs, and nothing changed/);
    expect(await textOf(machine, '/etc/gantry/agent.yaml')).toBe(`# mine\n${config}`);
    expect(await unitValue(machine, 'MainPID')).toBe(pid);

    // A run that was ended between a change and the start with it is made good by the next one.
    await machine.sh('touch /usr/local/lib/gantry.unfinished');
    expect(await install()).toContain('+ systemctl restart gantry-agent.service');
    expect(await unitValue(machine, 'MainPID')).not.toBe(pid);

    // An event loop that stands still is found by the watchdog, and the agent started anew.
    await machine.sh('mkdir -p /run/systemd/system/gantry-agent.service.d');
    const short = '[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=5\nRestartSec=100ms\nTimeoutAbortSec=1\n';
    await writeFile(machine.path('/run/systemd/system/gantry-agent.service.d/short.conf'), short);
    await machine.sh('systemctl daemon-reload && systemctl restart gantry-agent');
    const watched = await unitValue(machine, 'MainPID');
    await machine.sh('kill -STOP "$1"', watched);
    await eventually(
      'another agent runs',
      async () => {
        const now = await unitValue(machine, 'MainPID');
        return now !== watched && now !== '0' && (await unitValue(machine, 'ActiveState')) === 'active';
      },
      LOOK,
    );

    await machine.sh(
      'rm -r /run/systemd/system/gantry-agent.service.d && systemctl daemon-reload && systemctl reset-failed',
    );
    await machine.sh('systemctl restart gantry-agent');

    // An upgrade: the program changes, the unit is restarted, tokens and configuration stay.
    const token = (
      await machine.sh('cd / && setpriv --reuid gantry --regid gantry --init-groups gantry-agent tokens add x')
    ).stdout;
    expect(token).toMatch(/^gantry_/);
    await machine.sh('echo "// older" >> /usr/local/lib/gantry/dist/gantry-agent.mjs');
    const before = await unitValue(machine, 'MainPID');
    expect(await install()).toContain('+ systemctl restart gantry-agent.service');
    expect(await unitValue(machine, 'MainPID')).not.toBe(before);
    expect((await machine.run(['gantry-agent', 'tokens', 'list'])).stdout).toContain('x\toperator');
    expect(existsSync(machine.path('/usr/local/lib/gantry.old'))).toBe(false);

    // Its end leaves configuration and tokens; with --purge nothing.
    const gone = await machine.run(['sh', '/usr/local/lib/gantry/scripts/install-agent.sh', '--uninstall']); // its own copy
    expect(gone.stdout).toContain('kept: /var/lib/gantry');
    expect((await machine.run(['systemctl', 'is-active', 'gantry-agent'])).stdout).toBe('inactive');
    expect(existsSync(machine.path('/usr/local/bin/gantry-agent'))).toBe(false);
    expect(existsSync(machine.path('/var/lib/gantry/tokens.json'))).toBe(true);
    await install('--uninstall', '--purge');
    const left = await machine.sh(
      'find / -xdev -name "*gantry*" -not -path "/tmp/*" -not -path "/proc/*" -newer /etc/hostname -not -path "$1/*"',
      resolve('.'),
    );
    expect(
      left.stdout.split('\n').filter((path) => !/^\/(run|work|root|home|var\/log\/journal)/.test(path) && path !== ''),
    ).toEqual([]);
  },
);
