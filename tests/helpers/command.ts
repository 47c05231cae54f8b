import { execa } from 'execa';
import { mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { stringify } from 'yaml';
import type { TestFleet } from './fleet.ts';

const PROGRAM = resolve('dist/gantry.cjs');

/** A person's laptop with the hosts of a fleet in its bridge.yaml, and `gantry` in a terminal there, without a tty. */
export class Laptop {
  readonly home: string;

  private constructor(home: string) {
    this.home = home;
  }

  static async of(fleet: TestFleet, name = 'laptop', config: Record<string, unknown> = {}): Promise<Laptop> {
    const home = join(fleet.directory, name);
    await mkdir(join(home, '.config', 'gantry'), { recursive: true });
    const hosts = fleet.hosts.map((host) => ({ name: host.name, url: host.url, token: host.token }));
    const text = stringify({ hosts, output_dir: fleet.output, roots: [fleet.directory], ...config });
    await writeFile(join(home, '.config', 'gantry', 'bridge.yaml'), text, { mode: 0o600 });
    return new Laptop(home);
  }

  /** Starts a command; what it writes is collected, and its exit is no failure. */
  start(...args: string[]) {
    return execa(process.execPath, [PROGRAM, ...args], {
      reject: false,
      stdin: 'ignore',
      cwd: this.home,
      env: { HOME: this.home, PATH: process.env['PATH'] },
      extendEnv: false,
      forceKillAfterDelay: false,
    });
  }

  async run(...args: string[]): Promise<{ exitCode: number | undefined; stdout: string; stderr: string }> {
    const { exitCode, stdout, stderr } = await this.start(...args);
    return { exitCode, stdout, stderr };
  }

  /** As `run` with --json, its document parsed. */
  async json(...args: string[]): Promise<{ exitCode: number | undefined; json: Record<string, unknown> }> {
    const { exitCode, stdout } = await this.run(...args, '--json');
    return { exitCode, json: JSON.parse(stdout) as Record<string, unknown> }; // JSON.parse is `any`
  }
}
