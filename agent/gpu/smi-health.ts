import type { Trouble } from './smi-rows.ts';
import { normalBusId } from './smi-rows.ts';

/** What the end of an nvidia-smi without readings means. PURE. */

export type SmiOutput = { exitCode: number | undefined; stdout: string; stderr: string };

/** Why there is no answer, from an exit without readings. */
export function healthOf({ exitCode, stdout, stderr }: SmiOutput): Trouble {
  const text = `${stdout}\n${stderr}`;
  const said = text
    .split('\n')
    .find((line) => line.trim() !== '')
    ?.replaceAll(/[^\x20-\x7e]/g, '')
    .trim()
    .slice(0, 300);
  if (/ENOENT/.test(text) && exitCode === undefined) {
    return {
      health: 'absent',
      reason: 'nvidia-smi was not found; name it under gpu.nvidia_smi in agent.yaml if it is not on the PATH',
    };
  }
  if (exitCode === 15 || /GPU is lost|fallen off the bus|Unable to determine the device handle/i.test(text)) {
    return { health: 'lost', reason: `${said ?? 'a GPU has fallen off the bus'}${reboot(text)}` };
  }
  if (exitCode === 6 || /No devices were found/.test(text)) return { health: 'absent', reason: said ?? 'no GPU found' };
  const meaning = EXIT_MEANINGS[exitCode ?? -1];
  if (said === undefined || said === '') {
    return {
      health: 'unreadable',
      reason: meaning ?? `nvidia-smi printed no reading (exit code ${exitCode ?? 'none'})`,
    };
  }
  return { health: 'unreadable', reason: meaning === undefined ? said : `${said} (${meaning})` };
}

/** True where the driver does not know one of the fields: then a shorter list may do. */
export function isUnknownField({ exitCode, stdout, stderr }: SmiOutput): boolean {
  return exitCode === 2 && /is not a valid field to query/.test(stdout + stderr);
}

/** One GPU that the driver cannot talk to, as its message names it. */
export type NamedLoss = { busId: string | undefined; index: number | undefined; said: string };

/**
 * The GPUs that a message calls lost. Drivers word it in several ways: "GPU 0000:02:00.0: GPU is lost",
 * "GPU0000:02:00.0: Unknown Error", "GPU3: 0000:02:00.0: Unknown Error", "GPU0".
 */
export function namedLosses(text: string): NamedLoss[] {
  const sentence =
    /Unable to determine the device handle for gpu ?(?:(\d+)(?=:\s|\s|$):?[ \t]*)?((?:[0-9a-f]{4}|[0-9a-f]{8}):[0-9a-f]{2}:[0-9a-f]{2}\.\d)?[^\n]*/gi;
  return [...text.matchAll(sentence)].flatMap(([said, index, busId]) => {
    if (index === undefined && busId === undefined) return [];
    return [
      {
        busId: busId === undefined ? undefined : normalBusId(busId),
        index: index === undefined ? undefined : Number(index),
        said: said.trim(),
      },
    ];
  });
}

const EXIT_MEANINGS: Record<number, string> = {
  2: 'nvidia-smi does not know an argument',
  3: 'the query is not available on this device',
  4: 'no permission to read the GPU',
  8: 'a power cable of the GPU is not connected',
  9: 'the NVIDIA driver is not loaded',
  10: 'the driver found an interrupt problem of the GPU',
  12: 'the NVML library is missing',
  13: 'the NVML library is too old for this nvidia-smi',
  18: 'driver and library versions do not match; restart the host',
};

function reboot(text: string): string {
  return /reboot/i.test(text) ? '' : ' Reboot the host to get it back.';
}
