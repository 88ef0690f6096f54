#!/bin/bash
#SBATCH --job-name={{ job_name }}
#SBATCH --output={{ out_file }}
#SBATCH --error={{ err_file }}
#SBATCH --open-mode=append
{%- for name, value in (("partition", partition), ("account", account), ("qos", qos), ("time", time), ("mem", mem)) %}
{%- if value %}
#SBATCH --{{ name }}={{ value }}
{%- endif %}
{%- endfor %}
#SBATCH --nodes={{ nodes }} --ntasks-per-node={{ tasks_per_node }} --cpus-per-task={{ cpus_per_task }}
{%- if num_gpu %}
#SBATCH --gpus-per-node={{ num_gpu }}
{%- endif %}
#SBATCH {{ "--requeue" if requeue else "--no-requeue" }}
#SBATCH --signal=USR1@{{ warn_s }}
{% if requeue %}
# when its time runs out the job asks SLURM to start it again
export FLEX_JOB_REQUEUE=yes
{% endif %}
# SLURM tells the step below itself; without this the shell would not wait for it to save its work
trap told=yes TERM
{{ launcher }} {{ command }}
code=$?
# a step that was killed, for lack of memory perhaps, leaves no word, and RELION would wait for one for ever;
# one that is done, has saved its work ({{ resumable }}) or was ended by TERM (143) has nothing to add
case "${told-}$code" in
    0 | {{ resumable }} | 143 | yes*) ;;
    *) ls {{ job_dir }}/RELION_JOB_EXIT_* >/dev/null 2>&1 || touch {{ job_dir }}/RELION_JOB_EXIT_FAILURE ;;
esac
exit "$code"
