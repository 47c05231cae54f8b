import { execa } from 'execa';
import { resolve } from 'node:path';
import { bootGpuBox } from './gpu-box.ts';
import { ThrowAwayMachine } from './throw-away-machine.ts';

/** One command of a newcomer, where it was typed, and what came of it. */
export type Step = { at: 'gpu host' | 'laptop'; typed: string; printed: string; tookMs: number };

export type Visit = { steps: Step[]; image: string; tookMs: number };

const ADDRESSES = { box: '10.77.0.1', laptop: '10.77.0.2' };
const HOME = '/home/newcomer';

/**
 * From nothing to the first image, as docs/install.md says it, on two machines with a network between them: a GPU host with a
 * real systemd and simulated hardware, and a laptop. No file is edited by hand. Throws at the first command that fails.
 */
export async function visit(onStep: (step: Step) => void = () => undefined): Promise<Visit> {
  await using box = await bootGpuBox({ name: 'gpubox' });
  await using laptop = await ThrowAwayMachine.boot({ name: 'laptop' });
  await connect(box, laptop);
  const startMs = performance.now();
  const steps: Step[] = [];
  const type = async (at: Step['at'], typed: string): Promise<string> => {
    const fromMs = performance.now();
    const machine = at === 'laptop' ? laptop : box;
    // As it is typed: the programs are found by name, in the directory that belongs to whoever types.
    const { exitCode, all } = await machine.run(['sh', '-c', `cd "$HOME" && ${typed} 2>&1`], {
      env: at === 'laptop' ? { HOME, XDG_CONFIG_HOME: `${HOME}/.config` } : {},
    });
    const step = { at, typed, printed: all, tookMs: Math.round(performance.now() - fromMs) };
    steps.push(step);
    onStep(step);
    if (exitCode !== 0) throw new Error(`${at}: ${typed} failed with ${exitCode}:\n${all}`);
    return all;
  };
  await laptop.sh(`mkdir -p ${HOME} && ln -s ${resolve('dist/gantry.cjs')} /usr/local/bin/gantry`);
  const installed = await type('gpu host', `${resolve('scripts/install-agent.sh')} --listen network --yes`);
  const line = /gantry add '[^']+'/.exec(installed)?.[0];
  if (line === undefined) throw new Error(`the installer printed no invite:\n${installed}`);
  await type('gpu host', 'gantry-agent doctor');
  await type('laptop', line);
  const made = await type('laptop', 'gantry generate "a red fox asleep in the moss" --quiet');
  await type('laptop', 'gantry doctor');
  const image = made.split('\n').find((text) => text.endsWith('.png')) ?? '';
  const { stdout } = await laptop.sh('file -b "$1" || head -c 8 "$1"', image);
  if (!stdout.includes('PNG')) throw new Error(`${image || 'nothing'} is no picture: ${stdout}`);
  return { steps, image, tookMs: Math.round(performance.now() - startMs) };
}

/** A cable between the two. */
async function connect(box: ThrowAwayMachine, laptop: ThrowAwayMachine): Promise<void> {
  const ends = ['type', 'veth', 'peer', 'name', 'eth0', 'netns', String(laptop.pid)];
  await execa('ip', ['link', 'add', 'eth0', 'netns', String(box.pid), ...ends]);
  for (const [machine, address] of [
    [box, ADDRESSES.box],
    [laptop, ADDRESSES.laptop],
  ] as const) {
    await machine.sh(`ip addr add ${address}/24 dev eth0 && ip link set eth0 up`);
  }
}
