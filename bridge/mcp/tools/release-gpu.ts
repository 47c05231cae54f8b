import { giveBack, GivingBack } from '../giving-back.ts';
import { MoveAnswer } from '../moves.ts';
import { defineTool, ENDS } from '../tool.ts';

export const releaseGpu = defineTool({
  name: 'release_gpu',
  title: 'Release a model completely',
  description:
    "End a model's server, so that all its VRAM and host RAM is free; coming back takes a full load. A running image ends " +
    'first. Answers the VRAM before and after as nvidia-smi shows it, and how long batch work leaves the model away.',
  annotations: ENDS,
  input: GivingBack,
  output: MoveAnswer,
  run: (args, context) => giveBack('release', { args, context }),
});
