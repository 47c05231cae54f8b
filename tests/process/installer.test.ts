import { execa } from 'execa';
import { existsSync } from 'node:fs';
import { chmod, chown, mkdir, mkdtemp, readdir, readFile, readlink, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';

const INSTALLER = resolve('scripts/install-agent.sh');
const isRoot = process.getuid?.() === 0;
const has = async (...command: [string, ...string[]]) =>
  (await execa(command[0], command.slice(1), { reject: false, stdin: 'ignore' })).exitCode === 0;
const canUseRoots = isRoot && (await has('systemd-sysusers', '--version')) && (await has('systemctl', '--version'));
const hasShellcheck = await has('shellcheck', '--version');
if (!canUseRoots) process.stdout.write('installer into another root: skipped, it needs root and systemd\n');
if (!hasShellcheck) process.stdout.write('installer: not looked at by shellcheck, which is not here\n');

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-install-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

describe('install-agent.sh', { timeout: 120_000 }, () => {
  test.skipIf(!hasShellcheck)('is what shellcheck and POSIX allow', async () => {
    expect((await execa('shellcheck', ['-s', 'sh', INSTALLER], { reject: false })).stdout).toBe('');
  });

  test('an option it does not know is exit 2', async () => {
    const { exitCode, stderr } = await install(['--instal']);
    expect(exitCode).toBe(2);
    expect(stderr).toContain('unknown option --instal');
  });

  test('without a GPU it goes no further, and says how to go on', async () => {
    await program('nvidia-smi', 'echo "couldn\'t communicate with the NVIDIA driver"; exit 9');
    const { exitCode, stderr } = await install(['--dry-run', '--root', join(dir, 'root')]);
    expect(exitCode).toBe(69);
    expect(stderr).toMatch(/couldn't communicate[^]*--no-gpu/);
  });

  test('a node that is too old is not used', async () => {
    await mkdir(join(dir, 'other'));
    const old = join(dir, 'other', 'node');
    await writeFile(old, '#!/bin/sh\necho 18.20.4\n', { mode: 0o755 });
    const { stdout } = await install(['--dry-run', '--no-gpu', '--node', old, '--root', join(dir, 'root')]);
    expect(stdout).toContain(`not used: ${old} is node 18.20.4, and 20.19 or later is needed.`);
    const newer = join(dir, 'other', 'newer');
    await writeFile(newer, '#!/bin/sh\necho 21.0.1\n', { mode: 0o755 });
    const second = await install(['--dry-run', '--no-gpu', '--node', newer, '--root', join(dir, 'root')]);
    expect(second.stdout).toContain(`node 21.0.1: ${newer}`);
  });

  test('without root it says so, and how', async () => {
    // Where root runs the tests, nobody takes its place; the checkout may be closed to him, so he gets the text.
    const nobody = isRoot ? { uid: 65_534, gid: 65_534 } : {};
    const args = ['-s', '--', '--yes', '--no-gpu'];
    const { exitCode, stderr } = await execa('sh', args, { ...nobody, inputFile: INSTALLER, cwd: '/', reject: false });
    expect(exitCode).toBe(77);
    expect(stderr).toContain('sudo');
  });

  test.skipIf(!canUseRoots)('into another root: all of it, twice, and out again', async () => {
    const root = join(dir, 'root');
    await mkdir(root);
    const first = await install(['--no-gpu', '--root', root, '--prefix', '/opt/gantry', '--listen', '10.1.2.3']);
    expect(first.exitCode, first.stderr).toBe(0);
    const config = join(root, 'etc/gantry/agent.yaml');
    expect(await readFile(config, 'utf8')).toContain('listen: 10.1.2.3:7801\nstate_dir: /var/lib/gantry\n');
    const unit = await readFile(join(root, 'etc/systemd/system/gantry-agent.service'), 'utf8');
    expect(unit).toContain('ExecStart=/opt/gantry/bin/gantry-agent run');
    expect(await readFile(join(root, 'etc/passwd'), 'utf8')).toMatch(/^gantry:x:/m);
    expect(await readlink(join(root, 'opt/gantry/bin/gantry-agent'))).toBe(
      '/opt/gantry/lib/gantry/dist/gantry-agent.mjs',
    );
    // What was copied is all that the program needs, also for pictures and certificates.
    const lib = join(root, 'opt/gantry/lib/gantry');
    const load =
      "await import('sharp'); await import('selfsigned'); await import('systeminformation'); await import('prom-client')";
    expect(await has('sh', '-c', `cd ${lib} && node --input-type=module -e "${load}"`)).toBe(true);
    expect(await has(join(lib, 'dist/gantry-agent.mjs'), '--version')).toBe(true);

    expect(existsSync(`${lib}.unfinished`)).toBe(false);
    // As a run leaves it that was killed in the middle: the service may not read it, and was not started with the change.
    await writeFile(config, 'listen: 127.0.0.1:9\n');
    const { gid } = await stat(config);
    expect(gid).toBeGreaterThan(0);
    await chown(config, 0, 0);
    await writeFile(`${lib}.unfinished`, '');
    const second = await install(['--no-gpu', '--root', root, '--prefix', '/opt/gantry', '--listen', 'network']);
    expect(second.stdout).toMatch(/has this release already[^]*kept as it is/);
    expect(await readFile(config, 'utf8')).toBe('listen: 127.0.0.1:9\n');
    expect(await stat(config)).toMatchObject({ uid: 0, gid });
    expect(existsSync(`${lib}.unfinished`)).toBe(false);

    const units = join(root, 'etc/systemd/system');
    await mkdir(join(units, 'gantry-agent.service.d'));
    await writeFile(join(units, 'gantry-agent.service.new'), 'what a killed run had begun');
    const taken = await install(['--uninstall', '--root', root, '--prefix', '/opt/gantry']);
    expect([existsSync(config), existsSync(lib)]).toEqual([true, false]);
    // What is left is what it says, and to be named it has to be there.
    expect(taken.stdout.match(/^kept: .*$/gm)).toEqual([
      'kept: /etc/gantry',
      'kept: /etc/systemd/system/gantry-agent.service.d',
      'kept: the user gantry',
    ]);
    expect((await gantrysIn(root)).sort()).toEqual([
      'etc/gantry',
      'etc/gantry/agent.yaml',
      'etc/systemd/system/gantry-agent.service.d',
      'opt/gantry', // the prefix, which might be /usr/local
      'opt/gantry/bin',
      'opt/gantry/lib',
    ]);
    const purged = await install(['--uninstall', '--purge', '--root', root, '--prefix', '/opt/gantry']);
    expect(purged.exitCode, purged.stderr).toBe(0);
    expect((await gantrysIn(root)).filter((path) => !path.startsWith('opt/'))).toEqual([]);
    for (const name of ['passwd', 'group', 'shadow'])
      expect(await readFile(join(root, 'etc', name), 'utf8'), name).not.toContain('gantry');
    expect((await install(['--uninstall', '--purge', '--root', root, '--prefix', '/opt/gantry'])).exitCode).toBe(0);
  });
});

function install(args: readonly string[]) {
  const env = { PATH: `${dir}:${process.env['PATH'] ?? ''}` };
  return execa('sh', [INSTALLER, '--yes', ...args], { env, reject: false, stdin: 'ignore' });
}

/** All that has the name in its path, seen from the root. */
async function gantrysIn(root: string): Promise<string[]> {
  return (await readdir(root, { recursive: true })).filter((path) => path.includes('gantry'));
}

/** Found before the machine's own. */
async function program(name: string, script: string): Promise<void> {
  await writeFile(join(dir, name), `#!/bin/sh\n${script}\n`);
  await chmod(join(dir, name), 0o755);
}
