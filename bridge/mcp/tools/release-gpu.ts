import { giveBack, GivingBack } from '../giving-back.ts';
import { MoveAnswer } from '../moves.ts';
import { defineTool, ENDS } from '../tool.ts';

export const releaseGpu = defineTool({
  name: 'release_gpu',
  title: 'Release a model completely',
  description:
    "End a model's server: all its memory is free, and coming back takes a full load. A running image ends " + 'first.',
  annotations: ENDS,
  input: GivingBack,
  output: MoveAnswer,
  run: (args, context) => giveBack('release', { args, context }),
});
