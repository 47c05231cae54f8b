import { execa } from 'execa';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cgroupPath } from '../../agent/server/cgroup.ts';
import { pause } from '../../shared/abort.ts';

const BOOT_MS = 60_000;
const GONE_MS = 20_000;
const LOOK_MS = 100;
const never = new AbortController().signal;

/** Nothing but what a service needs: no login, no devices, no clocks, none of the services of the machine beneath. */
const UNITS: Readonly<Record<string, string>> = {
  'sysinit.target': '[Unit]\nDefaultDependencies=no\nWants=systemd-journald.service\nAfter=systemd-journald.service\n',
  'basic.target': '[Unit]\nDefaultDependencies=no\nRequires=sysinit.target\nAfter=sysinit.target\n',
  'multi-user.target': '[Unit]\nDefaultDependencies=no\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n',
  'network-online.target': '[Unit]\nDefaultDependencies=no\n',
};

/** $1: an empty directory; $2: the host name. Everything that is mounted here is seen by the processes in here alone. */
const BOOT = `set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -o remount,bind,ro sys
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/shm dev/pts
for node in null zero full random urandom tty; do : > "dev/$node"; mount --bind "/dev/$node" "dev/$node"; done
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/systemd/system run/old
rm -rf etc/systemd/system/*.wants lib/systemd/system/*.wants # nothing of the machine beneath is started
echo "$2" > etc/hostname
${Object.entries(UNITS)
  .map(([name, text]) => `printf '${text.replaceAll('\n', '\\n')}' > etc/systemd/system/${name}`)
  .join('\n')}
ip link set lo up
pivot_root . run/old
umount -l run/old
rmdir run/old
exec env -i container=gantry PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=no
`;

/**
 * A machine to install something on, without a machine: this one's own file system, with every change in memory, its own
 * network, processes and users, and a real systemd as its first process. It takes root, a kernel with overlayfs and cgroup v2.
 */
export class ThrowAwayMachine implements AsyncDisposable {
  readonly #directory: string;
  readonly #cgroup: string;
  readonly #unshare: ReturnType<typeof spawnBoot>;
  /** Of its systemd, as seen from here. */
  readonly pid: number;

  private constructor(o: { directory: string; cgroup: string; unshare: ReturnType<typeof spawnBoot>; pid: number }) {
    this.#directory = o.directory;
    this.#cgroup = o.cgroup;
    this.#unshare = o.unshare;
    this.pid = o.pid;
  }

  /** What this machine lacks for it; undefined where it can be had. */
  static async whyNot(): Promise<string | undefined> {
    if (process.getuid?.() !== 0) return 'it needs root';
    if (!existsSync('/lib/systemd/systemd')) return 'it needs systemd';
    if (/^\/(tmp|run|dev)\//.test(process.cwd()))
      return `it has its own /${process.cwd().split('/')[1]}, where this clone is`;
    if (delegatedCgroup() === undefined) return 'it needs cgroup v2 that this process may write to';
    const probe =
      'mount --make-rprivate / && d=$(mktemp -d) && mount -t tmpfs t "$d" && mkdir "$d/u" "$d/w" "$d/r" && mount -t overlay o -o "lowerdir=/,upperdir=$d/u,workdir=$d/w" "$d/r"; rc=$?; umount -l "$d"; rmdir "$d"; exit $rc';
    const { exitCode } = await execa('unshare', ['-m', '-n', '-p', '-f', 'sh', '-c', probe], { reject: false });
    return exitCode === 0 ? undefined : 'it needs overlayfs and namespaces';
  }

  static async boot({ name }: { name: string }): Promise<ThrowAwayMachine> {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-machine-'));
    const cgroup = join(delegatedCgroup() ?? '', `gantry-machine-${process.pid}-${name}`);
    mkdirSync(cgroup);
    const unshare = spawnBoot({ cgroup, directory, name });
    try {
      const pid = await firstChild(unshare.pid ?? 0);
      const machine = new ThrowAwayMachine({ directory, cgroup, unshare, pid });
      await machine.#untilUp();
      return machine;
    } catch (error) {
      unshare.kill('SIGKILL');
      const { stderr } = await unshare;
      await cleared({ directory, cgroup });
      throw new Error(`no machine: ${stderr}`, { cause: error });
    }
  }

  /** Runs a command inside, as root, and never throws for its exit code. */
  run(command: readonly string[], { env = {}, input }: { env?: Record<string, string>; input?: string } = {}) {
    const [program = '', ...args] = command;
    const inside = ['-t', String(this.pid), '-m', '-u', '-i', '-n', '-p', '-C', '-r', '-w', '--', program, ...args];
    return execa('nsenter', inside, {
      ...{ reject: false, all: true, extendEnv: false, env: { PATH: PATH_INSIDE, HOME: '/root', ...env } },
      ...(input === undefined ? { stdin: 'ignore' } : { input }),
    });
  }

  /** A script for its shell. */
  sh(script: string, ...args: string[]) {
    return this.run(['sh', '-c', script, 'sh', ...args]);
  }

  /** Where a file of it lies, seen from here. */
  path(inside: string): string {
    return `/proc/${this.pid}/root${inside}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    process.kill(this.pid, 'SIGKILL'); // the first process of a namespace takes all others with it
    await this.#unshare;
    await cleared({ directory: this.#directory, cgroup: this.#cgroup });
  }

  async #untilUp(): Promise<void> {
    const deadline = performance.now() + BOOT_MS;
    while (performance.now() < deadline) {
      const { stdout } = await this.run(['systemctl', 'is-system-running']);
      if (/running|degraded/.test(String(stdout))) return;
      await pause(LOOK_MS, never);
    }
    throw new Error(`the machine was not up within ${BOOT_MS} ms`);
  }
}

function spawnBoot({ cgroup, directory, name }: { cgroup: string; directory: string; name: string }) {
  const enter = 'echo $$ > "$0/cgroup.procs" && exec unshare -C -m -p -f -u -i -n --kill-child sh -c "$@"';
  return execa('sh', ['-c', enter, cgroup, BOOT, 'sh', directory, name], {
    ...{ stdin: 'ignore', stdout: 'ignore', stderr: 'pipe', reject: false },
  });
}

const PATH_INSIDE = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Where this process may make groups. */
function delegatedCgroup(): string | undefined {
  try {
    const path = cgroupPath(readFileSync('/proc/self/mountinfo', 'utf8'), readFileSync('/proc/self/cgroup', 'utf8'));
    if (path === undefined) return undefined;
    const probe = join(path, `gantry-machine-probe-${process.pid}`);
    mkdirSync(probe);
    rmdirSync(probe);
    return path;
  } catch {
    return undefined; // read-only, or v1
  }
}

async function firstChild(pid: number): Promise<number> {
  const deadline = performance.now() + BOOT_MS;
  while (performance.now() < deadline) {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').trim();
    if (children !== '') return Number(children.split(' ')[0]);
    await pause(LOOK_MS, never);
  }
  throw new Error('the machine did not start');
}

async function cleared({ directory, cgroup }: { directory: string; cgroup: string }): Promise<void> {
  await rm(directory, { recursive: true, force: true });
  const deadline = performance.now() + GONE_MS;
  while (existsSync(cgroup) && performance.now() < deadline) {
    try {
      for (const path of [...groupsBelow(cgroup).reverse(), cgroup]) rmdirSync(path);
    } catch {
      await pause(LOOK_MS, never); // somebody is on his way out of it
    }
  }
}

function groupsBelow(path: string): string[] {
  return readdirSync(path, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .flatMap(({ name }) => [join(path, name), ...groupsBelow(join(path, name))]);
}
