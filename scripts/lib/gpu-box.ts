import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { ThrowAwayMachine } from './throw-away-machine.ts';

/** Of its own in each machine, where the service may write whatever else its unit closes. */
const LEDGER = '/dev/shm/gantry-sim';
const PROGRAMS = { 'nvidia-smi': 'nvidia-smi', vllm: 'vllm-omni', hf: 'hf' };

/** A throw-away machine with simulated hardware: one GPU with its nvidia-smi, and vllm under /usr/local/bin. */
export async function bootGpuBox({ name, totalMiB = 24_564 }: { name: string; totalMiB?: number }) {
  const machine = await ThrowAwayMachine.boot({ name });
  try {
    await mkdir(machine.path(LEDGER), { recursive: true });
    const gpu = { uuid: `GPU-${name}`, index: 0, name: 'Simulated GPU', totalMiB };
    await writeFile(machine.path(`${LEDGER}/gpus.json`), JSON.stringify([gpu]));
    await machine.sh(`chmod -R a+rwX ${LEDGER} && chmod a+x /usr/local/bin`);
    // Under other names: the directory of this checkout may be closed to the user of the service.
    for (const [here, there] of Object.entries({ 'dist/sim': '/opt/sim', node_modules: '/opt/node_modules' })) {
      await machine.sh('mkdir -p "$2" && mount --bind "$1" "$2"', resolve(here), there);
    }
    for (const [program, simulated] of Object.entries(PROGRAMS)) {
      const script = `#!/bin/sh\nGANTRY_SIM_LEDGER=${LEDGER} exec /usr/bin/env node /opt/sim/${simulated} "$@"\n`;
      await writeFile(machine.path(`/usr/local/bin/${program}`), script, { mode: 0o755 });
    }
    return machine;
  } catch (error) {
    await machine[Symbol.asyncDispose]();
    throw error;
  }
}

/** A value that systemd has of the unit. */
export async function unitValue(machine: ThrowAwayMachine, name: string): Promise<string> {
  const { stdout } = await machine.run(['systemctl', 'show', 'gantry-agent', '--value', '-p', name]);
  return stdout;
}

export async function textOf(machine: ThrowAwayMachine, path: string): Promise<string> {
  return await readFile(machine.path(path), 'utf8');
}
