import { execa } from 'execa';
import { readdir } from 'node:fs/promises';
import { isAlive } from './fleet.ts';

/** A machine of a test network: what runs behind `enter` has its own loopback and the one address. */
export type Machine = { name: string; address: string; enter: readonly string[] };

const PREFIX = 'gantry-';
let made = 0;
let reason: Promise<string | undefined> | undefined;

/** What this machine lacks for networks of its own, in one line; undefined where it lacks nothing. */
export function whyNoNetworks(): Promise<string | undefined> {
  reason ??= tryOut();
  return reason;
}

async function tryOut(): Promise<string | undefined> {
  if (process.platform !== 'linux') return 'network namespaces are a matter of Linux';
  try {
    await sweep();
    await using network = await TestNetwork.open(['probe']);
    await execa('nsenter', [...network.machine('probe').enter.slice(1), 'true']);
    return undefined;
  } catch (error) {
    const text = error instanceof Error ? (error.message.split('\n').at(-1) ?? '') : String(error);
    return `network namespaces need root with CAP_NET_ADMIN, and ip and nsenter (${text.slice(0, 120)})`;
  }
}

/**
 * Machines in network namespaces, each in a network of its own, with a router between them that is a namespace too. Only
 * what is made here is touched, and disposing takes all of it away; what a killed test left is swept by the next one.
 */
export class TestNetwork implements AsyncDisposable {
  readonly #router: string;
  readonly #machines = new Map<string, Machine & { namespace: string }>();

  private constructor(router: string) {
    this.#router = router;
  }

  static async open(names: readonly string[]): Promise<TestNetwork> {
    made += 1;
    const id = `${PREFIX}${process.pid}-${made}`;
    const network = new TestNetwork(`${id}-router`);
    try {
      await ip('netns', 'add', network.#router);
      await inside(network.#router, 'sysctl', '-qw', 'net.ipv4.ip_forward=1');
      for (const [index, name] of names.entries()) await network.#add(name, { namespace: `${id}-${name}`, index });
    } catch (error) {
      await network[Symbol.asyncDispose]();
      throw error;
    }
    return network;
  }

  machine(name: string): Machine {
    const found = this.#machines.get(name);
    if (found === undefined) throw new Error(`no machine ${name}`);
    return found;
  }

  /** From now on every packet to and from the machine vanishes, and nobody is told: every link stays up. */
  async silence(name: string): Promise<void> {
    await this.#route('add', name);
  }

  async heal(name: string): Promise<void> {
    await this.#route('del', name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const namespace of [...[...this.#machines.values()].map((each) => each.namespace), this.#router]) {
      await execa('ip', ['netns', 'del', namespace], { reject: false }); // not there where opening failed half way
    }
  }

  async #add(name: string, { namespace, index }: { namespace: string; index: number }): Promise<void> {
    const [gateway, address] = [`10.77.${index}.1`, `10.77.${index}.2`];
    await ip('netns', 'add', namespace);
    this.#machines.set(name, { name, address, namespace, enter: ['nsenter', `--net=/run/netns/${namespace}`, '--'] });
    await ip(
      '-n',
      namespace,
      'link',
      'add',
      'eth0',
      'type',
      'veth',
      'peer',
      'name',
      `to${index}`,
      'netns',
      this.#router,
    );
    await ip('-n', namespace, 'addr', 'add', `${address}/24`, 'dev', 'eth0');
    await ip('-n', this.#router, 'addr', 'add', `${gateway}/24`, 'dev', `to${index}`);
    for (const [where, device] of [
      [namespace, 'lo'],
      [namespace, 'eth0'],
      [this.#router, `to${index}`],
    ] as const) {
      await ip('-n', where, 'link', 'set', device, 'up');
    }
    await ip('-n', namespace, 'route', 'add', 'default', 'via', gateway);
  }

  /** To it: a route into nothing. From it: nothing is answered, because its answers are to the others' packets. */
  async #route(what: 'add' | 'del', name: string): Promise<void> {
    const { address } = this.machine(name);
    await ip('-n', this.#router, 'route', what, 'blackhole', `${address}/32`);
    const index = address.split('.')[2] ?? '';
    await inside(this.#router, 'sysctl', '-qw', `net.ipv4.conf.to${index}.forwarding=${what === 'add' ? 0 : 1}`);
  }
}

/** Namespaces of test processes that are not there any more. */
async function sweep(): Promise<void> {
  const names = await readdir('/run/netns').catch(() => [] as string[]); // there never was one
  for (const name of names) {
    const pid = /^gantry-(\d+)-\d+-/.exec(name)?.[1];
    if (pid !== undefined && !(await isAlive(Number(pid))))
      await execa('ip', ['netns', 'del', name], { reject: false });
  }
}

async function ip(...args: string[]): Promise<void> {
  await execa('ip', args);
}

async function inside(namespace: string, ...command: string[]): Promise<void> {
  await execa('nsenter', [`--net=/run/netns/${namespace}`, '--', ...command]);
}
