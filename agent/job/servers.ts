import type { Residency } from '../model/residency.ts';

/** What the exchange may ask of the owner of the model servers. */
export type Servers = Pick<
  Residency,
  | 'slots'
  | 'vramView'
  | 'slotFacts'
  | 'wantFor'
  | 'whyNoRoom'
  | 'admit'
  | 'move'
  | 'learn'
  | 'fetchWeights'
  | 'pullWeights'
>;
