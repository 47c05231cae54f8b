import type { HostSnapshot } from '../shared/host-snapshot.ts';

const SHOWN_MODELS = 4;

/** One line for `systemctl status`: `2 GPUs, qwen-image ready, 1 running`. PURE */
export function serviceStatus({ gpus, models, problems, isDraining }: HostSnapshot): string {
  const up = models.filter(({ state }) => state !== 'released');
  const running = models.flatMap(({ slots }) => slots).filter(({ phase }) => phase === 'running').length;
  const unshown = up.length - SHOWN_MODELS;
  return [
    ...(isDraining ? ['draining'] : []),
    gpus.length === 1 ? '1 GPU' : `${gpus.length} GPUs`,
    ...(up.length === 0 ? ['no model loaded'] : []),
    ...up.slice(0, SHOWN_MODELS).map(({ alias, state }) => `${alias} ${state}`),
    ...(unshown > 0 ? [`${unshown} more`] : []),
    ...(running > 0 ? [`${running} running`] : []),
    ...problems.slice(0, 1),
  ].join(', ');
}
